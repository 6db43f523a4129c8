# SPDX-License-Identifier: MIT
"""How an average is taken: agreement on what differs, then an exchange of shards.

Rank i of each node averages the i-th shard of every chunk with its peers, the ranks at the same
place in the other nodes: they exchange pieces as bytes (all_to_all), each takes the mean of one
piece (lofi_mean: in double, in node order, rounded once), the results go back to the peers
(all_gather) and then to the node (all_gather). A node sends 2 (K-1)/K times the bytes of what
differs, in the tensors' own dtype. Chunks overlap: while one is averaged, the next is exchanged.

Rejected: all_reduce of the weights. It sums in the dtype, in an order of its own, so that the
result depends on the transport; and its sum of bf16 weights rounds K - 1 times.

Memory: one copy of the tensors that differ, and SLOTS buffers of 2.5 shards of a chunk each.
"""

import contextlib
import hashlib
import mmap
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lofi import _world
from lofi._log import log
from lofi._native import _C
from lofi._targets import Item, on_host

CHUNK_BYTES = 16 * 1024 * 1024  # of the row; a rank sends a shard of it, in K pieces
SLOTS = 4  # chunks under way: one sent, one averaged, one going to the node, one to spare
_DIGEST_BYTES = 16
_SAMPLE_BYTES = 64 * 1024  # tensors up to this size are always compared whole
# The tensors of the last agreements. gloo's thread lets go of a tensor some time after wait(); were
# it the last to do so while the interpreter exits, it could not take the GIL and would abort.
_kept_for_gloo: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=4)
_UNKNOWN = bytes(_DIGEST_BYTES)


@dataclass
class _Part:
    """Tensors of one dtype that are averaged as one row of elements."""

    items: list[Item]
    sources: list[torch.Tensor]  # what this node puts in for each, flat, on the CPU
    is_shard: bool
    result: torch.Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.sources[0].dtype

    @property
    def count(self) -> int:
        return sum(source.numel() for source in self.sources)

    def read(self, begin: int, out: torch.Tensor) -> None:
        """Copy elements begin ... begin + len(out) of the row; zeros past its end."""
        filled, offset = 0, 0
        for source in self.sources:
            first = max(begin + filled - offset, 0)
            if first < source.numel() and filled < out.numel() and begin + filled >= offset:
                count = min(source.numel() - first, out.numel() - filled)
                out[filled : filled + count] = source[first : first + count]
                filled += count
            offset += source.numel()
        out[filled:].zero_()

    def results(self) -> Iterator[tuple[Item, torch.Tensor]]:
        offset = 0
        for item, source in zip(self.items, self.sources, strict=True):
            yield item, self.result[offset : offset + source.numel()]
            offset += source.numel()


@dataclass(frozen=True)
class _Chunk:
    """Elements begin ... begin + span of a row, padded; see lofi_chunk."""

    begin: int
    piece: int
    span: int


class _Slot:
    """The buffers of one chunk under way, and the collective that uses them now."""

    def __init__(self, nodes: int, piece: int, dtype: torch.dtype):
        self.mine = torch.empty(nodes * piece, dtype=dtype)  # my shard, before and after
        self.theirs = torch.empty_like(self.mine)  # my piece of it, in each node
        self.mean = torch.empty(piece, dtype=dtype)
        self.work: Any = None

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()
            self.work = None


@dataclass
class Change:
    """A tensor of the target, and what comes in its place: flat, on the CPU (see `flat`)."""

    item: Item
    values: torch.Tensor

    def write(self) -> None:
        write(self.item.tensor, self.values)


@dataclass
class Result:
    """What was averaged. Nothing has been written yet."""

    nodes: list[int]  # that are in it
    weights: list[float]  # of these
    averaged: int  # tensors that differed between nodes
    bytes_sent: int  # payload, by this rank's node, to other nodes
    changes: list[Change]


class Run:
    """One average, on one rank. The steps of `average` are collective, in this order."""

    def __init__(
        self, world: _world.World, items: list[Item], weight: float, first: dict[str, bytes]
    ):
        self.items, self.weight, self.first = items, weight, first
        self.topology = world.topology
        self.nodes, self.node_size = world.topology.node_count, world.topology.node_size
        self.node, self.place = world.node, world.rank % world.topology.node_size
        backend = _average_backend(world)
        self.world_inner = backend.inner("cpu", "world")
        self.node_inner = backend.inner("cpu", "node")
        self.column_inner = backend.inner("cpu", "column")
        self.store = world.store
        self.number = world.averages
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
        chosen = [weights[node] for node in members]
        parts = list(self._parts(differing, own))
        for part in parts:
            self._exchange(part, members, chosen)
        sent = self.sent()  # who has come here has the whole average: after this, all write
        changes = [Change(item, values) for part in parts for item, values in part.results()]
        changes += [
            Change(self.items[index], flat(value))
            for index, value in own.items()
            if index not in differing
        ]
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
        layout = [item.describe() for item in self.items]
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
            tables = self._gather(b"".join(mine)) if looked_at else []
            for position, index in enumerate(looked_at):
                at = slice(position * _DIGEST_BYTES, (position + 1) * _DIGEST_BYTES)
                between, inside = self._compare_digests([t[at] for t in tables], index)
                differ.update([index] * between)
                differ_inside.update([index] * inside)
            looked_at = [
                index
                for index in looked_at
                if index not in differ and self.items[index].tensor.nbytes > _SAMPLE_BYTES
            ]
        own = {index: self._first_of_node(self.items[index]) for index in sorted(differ_inside)}
        return sorted(differ), own

    def _digest(self, item: Item, sampled: bool) -> bytes:
        values = on_host(item.tensor)
        return _C.digest(_sample(values) if sampled and item.is_parameter else values)

    def _compare_digests(self, digests: list[bytes], index: int) -> tuple[bool, bool]:
        """Does a tensor, by the digests of all ranks, differ between nodes, and inside of one?"""
        size, is_shard = self.node_size, self.items[index].is_shard
        # A node's value is its first rank's; of a shard, each place has one of its own.
        places = range(size) if is_shard else (0,)
        between = any(
            digests[node * size + place] != digests[place]
            for node in range(self.nodes)
            for place in places
        )
        inside = not is_shard and any(
            digest != digests[rank - rank % size] for rank, digest in enumerate(digests)
        )
        return between, inside

    def _first_of_node(self, item: Item) -> torch.Tensor:
        value = on_host(item.tensor).clone()
        options = dist.BroadcastOptions()
        options.rootRank = 0
        self.node_inner.broadcast([_bytes(value.view(-1))], options).wait()
        if item.is_parameter and self.place == 0:
            log(
                "warn",
                f"the ranks of a node hold different values of the parameter {item.name}: the "
                "first rank's are averaged",
            )
        return value

    def _value(self, index: int, own: dict[int, torch.Tensor]) -> torch.Tensor:
        """What this node puts in for a tensor, contiguous on the CPU."""
        return own[index] if index in own else on_host(self.items[index].tensor)

    def _finds_nonfinite(self, index: int, own: dict[int, torch.Tensor]) -> bool:
        """In a tensor that the whole node holds, each rank looks at a part of its own."""
        values = self._value(index, own).view(-1)
        if not self.items[index].is_shard:
            part = -(-values.numel() // self.node_size)
            values = values[self.place * part : (self.place + 1) * part]
        return _C.find_nonfinite(values) >= 0

    def _agree_on_members(
        self, differing: list[int], own: dict[int, torch.Tensor], weights: list[float]
    ) -> list[int]:
        """The nodes that are in: those whose differing tensors are finite."""
        bad = next((i for i in differing if self._finds_nonfinite(i, own)), -1)
        reports = []
        for of_node, weight in zip(self._gather_number(bad), weights, strict=True):
            bad_here = [index for index in of_node if index >= 0]
            reports.append((True, min(bad_here, default=-1), weight))
        members = _C.average_members(reports, self.nodes)
        for node, (_, index, _) in enumerate(reports):
            if node not in members and self.topology.rank % self.node_size == 0:
                log(
                    "warn",
                    f"node {node} is left out of the average: {self.items[index].name} is not "
                    "finite there",
                )
        return members

    # -- the exchange -------------------------------------------------------------------------

    def _parts(self, differing: list[int], own: dict[int, torch.Tensor]) -> Iterator[_Part]:
        """The differing tensors by dtype and kind, in an order that all ranks share."""
        kinds: dict[tuple[bool, str], tuple[list[Item], list[torch.Tensor]]] = {}
        for index in differing:
            item = self.items[index]
            row = flat(self._value(index, own))
            group = kinds.setdefault((item.is_shard, str(row.dtype)), ([], []))
            group[0].append(item)
            group[1].append(row)
        for (is_shard, _), (items, sources) in kinds.items():
            yield _Part(items, sources, is_shard)

    def _exchange(self, part: _Part, members: list[int], weights: list[float]) -> None:
        """Fill part.result, with SLOTS chunks under way at once."""
        local_size = 1 if part.is_shard else self.node_size
        width = part.dtype.itemsize
        chunks = [
            _Chunk(begin, piece, local_size * self.nodes * piece)
            for begin, _, piece in _C.chunks(
                part.count, self.nodes, local_size, max(CHUNK_BYTES // width, 1)
            )
        ]
        part.result = _in_huge_pages(sum(chunk.span for chunk in chunks), part.dtype)
        # Used again and again: fresh pages for every chunk would cost as much as the copies.
        slots = [_Slot(self.nodes, chunks[0].piece, part.dtype) for _ in chunks[:SLOTS]]

        for step in range(len(chunks) + 2):
            if step < len(chunks):
                slot = slots[step % SLOTS]
                slot.wait()  # the node has had the chunk that used this slot before
                self._send_pieces(part, chunks[step], slot)
            if 0 <= step - 1 < len(chunks):
                self._return_mean(chunks[step - 1], slots[(step - 1) % SLOTS], members, weights)
            if 0 <= step - 2 < len(chunks):
                self._to_node(part, chunks[step - 2], slots[(step - 2) % SLOTS])
        for slot in slots:
            slot.wait()

    def _send_pieces(self, part: _Part, chunk: _Chunk, slot: _Slot) -> None:
        """My shard of the chunk, one piece to each node; from each node comes my piece."""
        size = self.nodes * chunk.piece
        mine, theirs = slot.mine[:size], slot.theirs[:size]
        place = 0 if part.is_shard else self.place
        part.read(chunk.begin + place * size, mine)
        slot.work = self.column_inner.alltoall_base(_bytes(theirs), _bytes(mine), [], [])
        self._count((self.nodes - 1) * chunk.piece * part.dtype.itemsize)

    def _return_mean(
        self, chunk: _Chunk, slot: _Slot, members: list[int], weights: list[float]
    ) -> None:
        """The mean of my piece goes to the peers, theirs come: my shard is whole again."""
        slot.wait()
        size = self.nodes * chunk.piece
        pieces = list(slot.theirs[:size].view(self.nodes, -1))
        mean = slot.mean[: chunk.piece]
        _C.mean(mean, [pieces[node] for node in members], weights)
        slot.work = self.column_inner._allgather_base(_bytes(slot.mine[:size]), _bytes(mean))
        self._count((self.nodes - 1) * mean.nbytes)

    def _to_node(self, part: _Part, chunk: _Chunk, slot: _Slot) -> None:
        """My shard goes to the node's other ranks, theirs come: the chunk is whole."""
        slot.wait()
        shard = slot.mine[: self.nodes * chunk.piece]
        result = part.result[chunk.begin : chunk.begin + chunk.span]
        if part.is_shard:
            result.copy_(shard)
        else:
            slot.work = self.node_inner._allgather_base(_bytes(result), _bytes(shard))


def _average_backend(world: _world.World) -> Any:
    """The lofi backend of the whole world."""
    backend = _world.backend_of(None)
    if backend is None:
        raise RuntimeError(
            "lofi.finalize_average needs the default process group to be lofi's: "
            'init_process_group(backend="lofi")'
        )
    return backend


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """64 evenly spaced runs of 1 KiB of a large tensor; a small one as it is."""
    if tensor.nbytes <= _SAMPLE_BYTES:
        return tensor
    step = tensor.nbytes // 64
    return _bytes(tensor.view(-1))[: 64 * step].view(64, step)[:, :1024].contiguous()


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """One row of elements that liblofi knows: complex numbers as pairs, integers as bytes."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    row = tensor.reshape(-1)
    return row if row.is_floating_point() else row.view(torch.uint8)


def _in_huge_pages(count: int, dtype: torch.dtype) -> torch.Tensor:
    """An empty row in huge pages where the system gives them on request: for a model's size, the
    faults of small pages cost as much as the arithmetic."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, max(count * dtype.itemsize, 1), flags=flags)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)


def write(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Put values that `flat` made into a tensor."""
    if tensor.is_complex():
        values = torch.view_as_complex(values.view(*tensor.shape, 2))
    else:
        values = values.view(tensor.dtype).view(tensor.shape)
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:  # expanded: one element seen many times
            tensor, values = tensor.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
    tensor.copy_(values)


def _first_difference(first: list[str], second: list[str]) -> tuple[str, str]:
    for a, b in zip(first, second, strict=False):
        if a != b:
            return a, b
    longer = first if len(first) > len(second) else second
    extra = longer[min(len(first), len(second))]
    return (extra, "nothing there") if longer is first else ("nothing there", extra)
