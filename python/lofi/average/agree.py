# SPDX-License-Identifier: MIT
"""How an average is taken: agreement on what differs, and on who is in; then the exchange of it.

What is equal in all nodes is recognised by digest, and not sent. See exchange.py for the rest.

Rejected: all_reduce of the weights. It sums in the dtype, in an order of its own, so that the
result depends on the transport; and its sum of bf16 weights rounds K - 1 times.
"""

import hashlib
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from lofi.average import device
from lofi.average.changes import Change, Result
from lofi.average.exchange import Exchange
from lofi.average.rows import Row, as_bytes, flat, row_dtype
from lofi.groups import peers
from lofi.job import job
from lofi.job.log import log
from lofi.job.native import _C
from lofi.models.items import Item, on_host

_NONFINITE_COUNT = 1 << 22  # elements of a tensor on a GPU that are looked at at once
_SAMPLE_BYTES = 64 * 1024  # tensors up to this size are always compared whole
# The tensors of the last agreements. gloo's thread lets go of a tensor some time after wait(); were
# it the last to do so while the interpreter exits, it could not take the GIL and would abort.
_kept_for_gloo: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=4)
_UNKNOWN = bytes(16)  # in place of a digest


class Run:
    """One average, on one rank. The steps of `average` are collective, in this order."""

    def __init__(
        self,
        here: job.Job,
        number: int,
        items: list[Item],
        weight: float,
        first: dict[str, bytes],
        scratch_bytes: int,
    ):
        self.items, self.weight, self.first = items, weight, first
        self.scratch_bytes = scratch_bytes
        self.topology = here.topology
        self.nodes, self.node_size = here.topology.node_count, here.topology.node_size
        self.node, self.place = here.node, here.rank % here.topology.node_size
        self.peers = peers.peers_of()
        self.world_inner = peers.world_backend(here).inner("cpu", "world")
        self.node_inner = self.peers.inner("cpu", "node")
        self.store = here.store
        self.number = number
        self.bytes_sent = 0

    def all_say(self, word: bool) -> bool:
        """Whether every rank of the world says yes: one byte from each."""
        return all(record == b"\1" for record in self._gather(bytes([word])))

    def sent(self) -> int:
        """Bytes sent by this rank's node up to here. Every rank gets here before any goes on."""
        return sum(self._gather_number(self.bytes_sent)[self.node])

    def average(self) -> Result:
        weights = self._agree_on_layout()
        differing, own = self._find_differences()
        members = self._agree_on_members(differing, own, weights)
        exchange = Exchange(
            self.peers,
            weights,
            gives=[node in members for node in range(self.nodes)],
            scratch_bytes=self.scratch_bytes,
            count=self._count,
        )
        changes: list[Change] = []
        for items, row, is_shard in list(self._rows(differing, own)):
            result = exchange.run(row, is_shard)
            changes += map(Change, items, row.split(result))
        sent = self.sent()  # who has come here has the whole average: after this, all write
        changes += [
            Change(self.items[index], flat(value))
            for index, value in own.items()
            if index not in differing
        ]
        chosen = [weights[node] for node in members]
        return Result(members, chosen, len(differing), sent, changes)

    # -- agreement ----------------------------------------------------------------------------

    def _gather(self, mine: bytes) -> list[bytes]:
        """The bytes of every rank, in rank order; the same length everywhere."""
        size = self.topology.world_size
        source = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        gathered = torch.empty(size * len(mine), dtype=torch.uint8)
        _kept_for_gloo.append((source, gathered))
        self.world_inner._allgather_base(gathered, source).wait()
        self._count(len(mine) * (self.nodes - 1))
        data = gathered.numpy().tobytes()
        return [data[i * len(mine) : (i + 1) * len(mine)] for i in range(size)]

    def _gather_number(self, mine: int) -> list[list[int]]:
        """The number of every rank, by node and place."""
        records = self._gather(struct.pack("<q", mine))
        return self._by_node([struct.unpack("<q", record)[0] for record in records])

    def _by_node(self, of_ranks: list[Any]) -> list[list[Any]]:
        size = self.node_size
        return [of_ranks[node * size : (node + 1) * size] for node in range(self.nodes)]

    def _count(self, sent: int) -> None:
        _C.count(_C.SCOPE_WORLD, _C.FOR_AVERAGE, sent)
        self.bytes_sent += sent

    def _agree_on_layout(self) -> list[float]:
        """Names, shapes, dtypes and first weights are the same everywhere; the nodes' weights."""
        layout = [f"scratch_bytes {self.scratch_bytes}"]  # chunks are cut by it
        layout += [item.describe() for item in self.items]
        firsts = [self.first.get(item.name, _UNKNOWN) for item in self.items]
        record = (
            hashlib.sha256("\n".join(layout).encode()).digest()
            + hashlib.sha256(b"".join(firsts) if self.first else b"").digest()
            + bytes([bool(self.first)])
            + struct.pack("<d", self.weight)
        )
        records = self._gather(record)
        self._compare(records, slice(0, 32), layout, "the layout of the target")
        if all(record[64] for record in records):
            pairs = zip(self.items, firsts, strict=True)
            lines = [f"{item.name} {first.hex()}" for item, first in pairs]
            what = "the weights that training began with"
            self._compare(records, slice(32, 64), lines, what, by_place=True)
        packed = self._by_node([record[65:] for record in records])
        weights = [[struct.unpack("<d", weight)[0] for weight in of_node] for of_node in packed]
        for node, of_node in enumerate(weights):
            if len(set(packed[node])) > 1:  # as bytes: a NaN equals itself
                raise ValueError(
                    f"lofi.finalize_average: the ranks of node {node} give different weights "
                    f"{of_node}; weight= belongs to the node"
                )
        return [of_node[0] for of_node in weights]

    def _compare(
        self, records: list[bytes], part: slice, lines: list[str], what: str, by_place: bool = False
    ) -> None:
        """Raise on every rank, with the same words, if a rank's record differs from rank 0's; or,
        by place, since shards differ inside a node, from that of the same place in node 0."""

        def model(rank: int) -> int:
            return rank % self.node_size if by_place else 0

        ranks = range(len(records))
        other = next((r for r in ranks if records[r][part] != records[model(r)][part]), None)
        if other is None:
            return
        store = dist.PrefixStore(f"lofi/average/{self.number}/{what}", self.store)
        rank = self.topology.rank
        if rank in (model(other), other):
            store.set(str(rank), "\n".join(lines))
        theirs = [store.get(str(r)).decode().split("\n") for r in (model(other), other)]
        first, second = _first_difference(*theirs)
        nodes = f"node 0 has {first}, node {other // self.node_size}"
        if other < self.node_size:
            nodes = f"rank 0 has {first}, rank {other} of the same node"
        raise ValueError(
            f"lofi.finalize_average: {what} differs: {nodes} has {second}. Nothing was changed; "
            "average models of the same architecture that began from the same weights"
        )

    def _find_differences(self) -> tuple[list[int], dict[int, torch.Tensor]]:
        """Which tensors differ between nodes, and the node's value of those that differ in it.

        Most of a trained model differs, which a sample shows; only what looks equal is read whole.
        Not so buffers: the ranks of a node may hold different ones, and everywhere must be looked.
        """
        differ: set[int] = set()
        differ_inside: set[int] = set()
        looked_at = list(range(len(self.items)))
        for sampled in (True, False):
            mine = [self._digest(self.items[index], sampled) for index in looked_at]
            gathered = b"".join(self._gather(b"".join(mine))) if looked_at else b""
            shards = [self.items[index].is_shard for index in looked_at]
            kinds = _C.differences(gathered, self.nodes, self.node_size, shards)
            for index, kind in zip(looked_at, kinds, strict=True):
                differ.update([index] * bool(kind & _C.DIFFERS_BETWEEN))
                differ_inside.update([index] * bool(kind & _C.DIFFERS_INSIDE))
            looked_at = [
                index
                for index in looked_at
                if index not in differ and self.items[index].tensor.nbytes > _SAMPLE_BYTES
            ]
        self._refuse_codes(differ | differ_inside)
        own = {index: self._first_of_node(self.items[index]) for index in sorted(differ_inside)}
        self._tell_of_different([self.items[index] for index in own])
        return sorted(differ), own

    def _refuse_codes(self, indices: set[int]) -> None:
        codes = [self.items[index].name for index in sorted(indices) if self.items[index].is_code]
        if codes:
            others = f" and {len(codes) - 1} others" if len(codes) > 1 else ""
            raise ValueError(
                f"lofi.finalize_average: {codes[0]}{others} differ between ranks and belong to "
                "quantised weights, whose codes have no mean. Nothing was changed; average the "
                "model before it is quantised"
            )

    def _digest(self, item: Item, sampled: bool) -> bytes:
        values = item.tensor.detach()
        if sampled and item.is_parameter:
            values = _sample(values)
        return _C.digest(on_host(values))

    def _first_of_node(self, item: Item) -> torch.Tensor:
        value = on_host(item.tensor).clone()
        options = dist.BroadcastOptions()
        options.rootRank = 0
        self.node_inner.broadcast([as_bytes(value.view(-1))], options).wait()
        return value

    def _tell_of_different(self, items: list[Item]) -> None:
        names = [item.name for item in items if item.is_parameter]
        if names and self.topology.rank == 0:
            others = f" and {len(names) - 1} others" if len(names) > 1 else ""
            log(
                "warn",
                f"the ranks of a node hold different values of the parameter {names[0]}{others}: "
                "the first rank's are averaged",
            )

    def _value(self, index: int, own: dict[int, torch.Tensor]) -> torch.Tensor:
        """What this node puts in for a tensor: where it lies, or contiguous on the CPU."""
        if index in own:
            return own[index]
        tensor = self.items[index].tensor.detach()
        return tensor if device.gpu.holds(tensor) else on_host(tensor)

    def _finds_nonfinite(self, index: int, own: dict[int, torch.Tensor]) -> bool:
        """In a tensor that the whole node holds, each rank looks at a part of its own."""
        values = self._value(index, own).reshape(-1)
        if not self.items[index].is_shard:
            part = -(-values.numel() // self.node_size)
            values = values[self.place * part : (self.place + 1) * part]
        return (
            _holds_nonfinite(values) if device.gpu.holds(values) else _C.find_nonfinite(values) >= 0
        )

    def _agree_on_members(
        self, differing: list[int], own: dict[int, torch.Tensor], weights: list[float]
    ) -> list[int]:
        """The nodes that are in: those whose differing tensors are finite."""
        bad = next((i for i in differing if self._finds_nonfinite(i, own)), -1)
        reports = []
        for of_node, weight in zip(self._gather_number(bad), weights, strict=True):
            bad_here = [index for index in of_node if index >= 0]
            reports.append((True, min(bad_here, default=-1), weight))
        members = _C.round_members(reports, self.nodes)
        for node, (_, index, _) in enumerate(reports):
            if node not in members and self.topology.rank % self.node_size == 0:
                log(
                    "warn",
                    f"node {node} is left out of the average: {self.items[index].name} is not "
                    "finite there",
                )
        return members

    def _rows(
        self, differing: list[int], own: dict[int, torch.Tensor]
    ) -> Iterator[tuple[list[Item], Row, bool]]:
        """The differing tensors by dtype and kind, in an order that all ranks share, and whether
        they are shards."""
        kinds: dict[tuple[bool, str, str], tuple[list[Item], list[torch.Tensor]]] = {}
        for index in differing:
            item = self.items[index]
            value = self._value(index, own)
            key = (item.is_shard, str(row_dtype(value)), value.device.type)
            items, values = kinds.setdefault(key, ([], []))
            items.append(item)
            values.append(value)
        for (is_shard, _, _), (items, values) in kinds.items():
            yield items, Row(values), is_shard


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """64 evenly spaced runs of 1 KiB of a large tensor; a small one as it is."""
    if tensor.nbytes <= _SAMPLE_BYTES:
        return tensor
    step = tensor.nbytes // 64
    return as_bytes(tensor.contiguous().view(-1))[: 64 * step].view(64, step)[:, :1024].contiguous()


def _holds_nonfinite(values: torch.Tensor) -> bool:
    """Of a tensor on a GPU: there, and with little memory."""
    values = torch.view_as_real(values).view(-1) if values.is_complex() else values
    if not values.is_floating_point():
        return False
    found = torch.zeros((), dtype=torch.bool, device=values.device)
    for part in values.split(_NONFINITE_COUNT):
        part = part.float() if part.dtype.itemsize == 1 else part  # float8 has no isfinite
        found |= ~torch.isfinite(part).all()
    return bool(found)


def _first_difference(first: list[str], second: list[str]) -> tuple[str, str]:
    for a, b in zip(first, second, strict=False):
        if a != b:
            return a, b
    longer = first if len(first) > len(second) else second
    extra = longer[min(len(first), len(second))]
    return (extra, "nothing there") if longer is first else ("nothing there", extra)
