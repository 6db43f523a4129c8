# SPDX-License-Identifier: MIT
"""The exchange of an average over the process groups, on the CPU or a GPU.

The plan (lofi/exchange.h) says how a row is cut, and in which order its chunks are given, combined
and shared; here each step becomes a collective: all_to_all of the pieces, all_gather of their
means, all_gather of the shards inside the node. Elements travel as bytes of their own dtype. Chunks
overlap: while one is averaged, the next is exchanged.

It asks nobody whether rows fit: all ranks of the members give rows of the same length and dtype, be
they of a model that was agreed on or the outputs of one.

Tensors on a GPU stay there: pieces go through NCCL and lofi's kernel, in a scratch of bounded size.
The result is kept in the host's memory until all of it has arrived everywhere, since nothing may
be overwritten before; on the GPU it would be a second model.

Memory: on the host, one copy of the row; where it lies, the buffers of the slots, and a copy of one
tensor at a time that is not contiguous. On a GPU the buffers fill the scratch at most, on the CPU
chunks are of tuning.chunk_bytes.
"""

import contextlib
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lofi.average import device
from lofi.average.rows import Row, as_bytes
from lofi.groups.peers import Peers
from lofi.job.native import _C

SCRATCH_BYTES = 256 * 1024 * 1024  # on a GPU, unless the caller says otherwise


class Slot:
    """The buffers of one chunk under way, and the collective that uses them now."""

    def __init__(self, row: Row, peers: Peers, givers: int, local_size: int, piece: int):
        like = {"dtype": row.dtype, "device": row.device}
        nodes = len(peers.nodes)
        self.mine = torch.empty(nodes * piece, **like)  # this rank's shard, before and after
        self.theirs = torch.empty(
            givers * piece, **like
        )  # this node's piece of it, from each giver
        self.mean = torch.empty(piece, **like)
        # The chunk of the whole node; elsewhere it is gathered in the result itself.
        is_needed = row.is_on_gpu and local_size > 1
        self.whole: Any = torch.empty(local_size * nodes * piece, **like) if is_needed else None
        self.work: Any = None
        self.copy: tuple[torch.Tensor, torch.Tensor] | None = None  # to the result, from here

    @property
    def nbytes(self) -> int:
        held = (self.mine, self.theirs, self.mean, self.whole)
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()
            self.work = None
        if self.copy is not None:
            self.copy[0].copy_(self.copy[1])
            self.copy = None


@dataclass
class Tuning:
    """What tests and benchmarks may set; the same on every rank."""

    chunk_bytes: int = 16 * 1024 * 1024  # of the row, on the CPU; a rank gives a shard of it
    slots: int = 4  # chunks under way: one sent, one averaged, one going to the node, one to spare
    scratch_least: int = 1024 * 1024
    slot: type[Slot] = Slot
    before_step: Callable[[Any], None] = lambda step: None  # called with each step of a plan


tuning = Tuning()


@dataclass
class Exchange:
    """Who exchanges with whom, and how what they give is combined."""

    peers: Peers
    weights: list[float]  # of the members, in the order of peers.nodes
    gives: list[bool]  # of these; one that gives nothing takes the result
    scratch_bytes: int = SCRATCH_BYTES
    alpha: float = 1.0  # with a base: (1 - alpha) * base + alpha * mean
    count: Callable[[int], None] = lambda sent: None  # told of bytes that go to other nodes

    def run(self, row: Row, is_shard: bool = False, base: Row | None = None) -> torch.Tensor:
        """The combined row, in the host's memory: as long as `row`, and some padding.

        is_shard  the ranks of a node hold rows of their own, not the same one.
        base      a row like `row`, the same in all nodes.
        """
        local_size = 1 if is_shard else self.peers.node_size
        steps = self._plan(row, local_size)
        chunks = [step for step in steps if step.kind == _C.EXCHANGE_GIVE]
        result = _in_huge_pages(sum(self._span(step, local_size) for step in chunks), row.dtype)
        # Used again and again: fresh pages for every chunk would cost as much as the copies.
        slots = [
            tuning.slot(row, self.peers, sum(self.gives), local_size, chunks[0].piece_count)
            for _ in chunks[: tuning.slots]
        ]
        for step in steps:
            tuning.before_step(step)
            slot = slots[step.slot]
            slot.wait()
            self.count(step.sent_bytes)
            if step.kind == _C.EXCHANGE_GIVE:
                self._give(step, slot, row, local_size)
            elif step.kind == _C.EXCHANGE_COMBINE:
                self._combine(step, slot, row, local_size, base)
            else:
                self._share(step, slot, row, local_size, result)
        for slot in slots:
            slot.wait()
        return result

    def _plan(self, row: Row, local_size: int) -> list[Any]:
        shape = (row.dtype.itemsize, len(self.peers.nodes), local_size, tuning.slots)
        if row.is_on_gpu:
            whole = local_size * len(self.peers.nodes) if local_size > 1 else 0
            chunk_count = _C.exchange_fit(*shape, self.scratch_bytes, whole)
        else:
            chunk_count = max(tuning.chunk_bytes // row.dtype.itemsize, 1)
        gives = self.gives[self.peers.node]
        return _C.exchange_plan(row.count, *shape, chunk_count, gives)

    def _span(self, step: Any, local_size: int) -> int:
        """Elements of a chunk, padded."""
        return local_size * len(self.peers.nodes) * step.piece_count

    def _begin_of_shard(self, step: Any, local_size: int) -> int:
        place = self.peers.place if local_size > 1 else 0
        return step.begin + place * len(self.peers.nodes) * step.piece_count

    def _inner(self, row: Row, span: str) -> Any:
        return self.peers.inner(row.device.type, span)

    def _give(self, step: Any, slot: Slot, row: Row, local_size: int) -> None:
        nodes, piece = len(self.peers.nodes), step.piece_count
        mine = slot.mine[: nodes * piece if self.gives[self.peers.node] else 0]
        theirs = slot.theirs[: sum(self.gives) * piece]
        if mine.numel() > 0:
            row.read(self._begin_of_shard(step, local_size), mine)
        given: list[int] = []
        taken: list[int] = []
        if not all(self.gives):
            given = [piece * row.dtype.itemsize * (mine.numel() > 0)] * nodes
            taken = [piece * row.dtype.itemsize * gives for gives in self.gives]
        column = self._inner(row, "column")
        slot.work = column.alltoall_base(as_bytes(theirs), as_bytes(mine), taken, given)

    def _combine(self, step: Any, slot: Slot, row: Row, local_size: int, base: Row | None) -> None:
        piece = step.piece_count
        mean = slot.mean[:piece]
        of_base = None
        if base is not None:
            of_base = torch.empty(piece, dtype=base.dtype, device=base.device)
            base.read(self._begin_of_shard(step, local_size) + self.peers.node * piece, of_base)
        self._mean(mean, slot.theirs[: sum(self.gives) * piece].view(-1, piece), of_base)
        mine = slot.mine[: len(self.peers.nodes) * piece]
        slot.work = self._inner(row, "column")._allgather_base(as_bytes(mine), as_bytes(mean))

    def _mean(self, out: torch.Tensor, pieces: torch.Tensor, base: torch.Tensor | None) -> None:
        """Of the givers' pieces, where they lie; on the host, to the same bits, for want of a
        kernel."""
        pairs = zip(self.weights, self.gives, strict=True)
        weights = [weight for weight, gives in pairs if gives]
        is_on_gpu = device.gpu.holds(out)
        if is_on_gpu and base is None and device.gpu.put_mean(out, pieces, weights):
            return
        on_host = list(pieces.cpu())
        result = torch.empty_like(out, device="cpu") if is_on_gpu else out
        if base is None:
            _C.mean(result, on_host, weights)
        else:
            _C.mean(result, on_host, weights, base.cpu(), self.alpha)
        if result is not out:
            out.copy_(result)

    def _share(
        self, step: Any, slot: Slot, row: Row, local_size: int, result: torch.Tensor
    ) -> None:
        shard = slot.mine[: len(self.peers.nodes) * step.piece_count]
        chunk = result[step.begin : step.begin + self._span(step, local_size)]
        if local_size == 1:
            slot.copy = (chunk, shard)
            return
        whole = slot.whole[: chunk.numel()] if row.is_on_gpu else chunk
        slot.work = self._inner(row, "node")._allgather_base(as_bytes(whole), as_bytes(shard))
        if row.is_on_gpu:
            slot.copy = (chunk, whole)


def _in_huge_pages(count: int, dtype: torch.dtype) -> torch.Tensor:
    """An empty row in huge pages where the system gives them on request: for a model's size, the
    faults of small pages cost as much as the arithmetic."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, max(count * dtype.itemsize, 1), flags=flags)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count)
