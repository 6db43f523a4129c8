# SPDX-License-Identifier: MIT
"""The exchange of an average: shards in chunks, over the process groups, on the CPU or a GPU.

Rank i of each node averages the i-th shard of every chunk with its peers, the ranks at the same
place in the other nodes: they exchange pieces as bytes (all_to_all), each takes the mean of one
piece (in double, in node order, rounded once), the results go back to the peers (all_gather) and
then to the node (all_gather). A node sends 2 (K-1)/K times the bytes of what differs, in the
tensors' own dtype. Chunks overlap: while one is averaged, the next is exchanged.

Tensors on a GPU stay there: pieces go through NCCL and lofi's kernel, in a scratch of bounded size.
The result is kept in the host's memory until all of it has arrived everywhere, since nothing may
be overwritten before; on the GPU it would be a second model.

Memory: on the host, one copy of the tensors that differ; where they lie, SLOTS buffers of a chunk
under way, and a copy of one tensor at a time that is not contiguous. On a GPU the buffers fill the
scratch at most, on the CPU chunks are of CHUNK_BYTES.
"""

import contextlib
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lofi.job.log import log
from lofi.job.native import _C

if TYPE_CHECKING:
    from lofi.models.items import Item

CHUNK_BYTES = 16 * 1024 * 1024  # of the row; a rank sends a shard of it, in K pieces
SLOTS = 4  # chunks under way: one sent, one averaged, one going to the node, one to spare
SCRATCH_BYTES = 256 * 1024 * 1024  # on a GPU, unless the caller says otherwise
SCRATCH_LEAST = 1024 * 1024
_ALIGNED = 16  # elements


@dataclass
class Part:
    """Tensors of one dtype and device that are averaged as one row of elements."""

    items: "list[Item]"
    sources: list[torch.Tensor]  # what this node puts in for each
    is_shard: bool
    result: Any = None  # a tensor in the host's memory
    held: tuple[int, torch.Tensor] | None = None  # the last source that had to be copied, flat

    def __post_init__(self) -> None:
        self.dtype, self.device = row_dtype(self.sources[0]), self.sources[0].device
        self.counts = [source.nbytes // self.dtype.itemsize for source in self.sources]

    @property
    def is_staged(self) -> bool:
        """The result is not made where it is kept."""
        return is_on_gpu(self.sources[0])

    @property
    def count(self) -> int:
        return sum(self.counts)

    def read(self, begin: int, out: torch.Tensor) -> None:
        """Copy elements begin ... begin + len(out) of the row; zeros past its end."""
        filled, offset = 0, 0
        for index, length in enumerate(self.counts):
            first = max(begin + filled - offset, 0)
            if first < length and filled < out.numel() and begin + filled >= offset:
                count = min(length - first, out.numel() - filled)
                out[filled : filled + count] = self._flat(index)[first : first + count]
                filled += count
            offset += length
        out[filled:].zero_()

    def _flat(self, index: int) -> torch.Tensor:
        source = self.sources[index]
        if source.is_contiguous():
            return flat(source)
        if self.held is None or self.held[0] != index:  # one copy at a time
            self.held = (index, flat(source.contiguous()))
        return self.held[1]

    def results(self) -> "Iterator[tuple[Item, torch.Tensor]]":
        offset = 0
        for item, length in zip(self.items, self.counts, strict=True):
            yield item, self.result[offset : offset + length]
            offset += length


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """One row of elements that liblofi knows: complex numbers as pairs, integers as bytes."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    row = tensor.reshape(-1)
    return row if row.is_floating_point() else row.view(torch.uint8)


def row_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Of what `flat` makes of it."""
    if tensor.is_complex():
        return tensor.dtype.to_real()
    return tensor.dtype if tensor.is_floating_point() else torch.uint8


def is_on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


@dataclass(frozen=True)
class _Chunk:
    """Elements begin ... begin + span of a row, padded; see lofi_chunk."""

    begin: int
    piece: int
    span: int


class _Slot:
    """The buffers of one chunk under way, and the collective that uses them now."""

    def __init__(self, part: Part, nodes: int, local_size: int, piece: int):
        like = {"dtype": part.dtype, "device": part.device}
        self.mine = torch.empty(nodes * piece, **like)  # my shard, before and after
        self.theirs = torch.empty_like(self.mine)  # my piece of it, in each node
        self.mean = torch.empty(piece, **like)
        # Of the whole node; elsewhere that is gathered in the result itself.
        is_needed = part.is_staged and not part.is_shard
        self.whole: Any = torch.empty(local_size * nodes * piece, **like) if is_needed else None
        self.work: Any = None
        self.copy: tuple[torch.Tensor, torch.Tensor] | None = None  # to the result, from here

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()
            self.work = None
        if self.copy is not None:
            self.copy[0].copy_(self.copy[1])
            self.copy = None


@dataclass
class Transfer:
    """Who exchanges with whom, and what for."""

    nodes: int
    node_size: int
    place: int
    inner: Callable[[str, str], Any]  # the inner backend of a device type and a span
    count: Callable[[int], None]  # told of bytes that this rank sends to other nodes
    scratch_bytes: int
    members: list[int]  # the nodes that are in
    weights: list[float]  # of these
    has_kernel: bool = _C.CUDA_IS_BUILT

    def run(self, part: Part) -> None:
        """Fill part.result, with SLOTS chunks under way at once."""
        local_size = 1 if part.is_shard else self.node_size
        chunks = [
            _Chunk(begin, piece, local_size * self.nodes * piece)
            for begin, _, piece in _C.chunks(
                part.count, self.nodes, local_size, self._chunk_elements(part, local_size)
            )
        ]
        part.result = _in_huge_pages(sum(chunk.span for chunk in chunks), part.dtype)
        # Used again and again: fresh pages for every chunk would cost as much as the copies.
        slots = [_Slot(part, self.nodes, local_size, chunks[0].piece) for _ in chunks[:SLOTS]]
        for step in range(len(chunks) + 2):
            if step < len(chunks):
                slot = slots[step % SLOTS]
                slot.wait()  # the node has had the chunk that used this slot before
                self._send_pieces(part, chunks[step], slot)
            if 0 <= step - 1 < len(chunks):
                self._return_mean(part, chunks[step - 1], slots[(step - 1) % SLOTS])
            if 0 <= step - 2 < len(chunks):
                self._to_node(part, chunks[step - 2], slots[(step - 2) % SLOTS])
        for slot in slots:
            slot.wait()

    def _chunk_elements(self, part: Part, local_size: int) -> int:
        """How long a chunk of a row may be; on a GPU, such that the slots fit the scratch."""
        width = part.dtype.itemsize
        if not part.is_staged:
            return max(CHUNK_BYTES // width, 1)
        whole = 0 if part.is_shard else local_size * self.nodes
        pieces = 2 * self.nodes + 1 + whole + (self.nodes if self._leaves_out else 0)
        piece = self.scratch_bytes // (SLOTS * pieces * width)
        # Pieces that lie side by side are aligned for the kernel; the library rounds up to whole
        # pieces, so this must be a multiple of them.
        return max(piece // _ALIGNED * _ALIGNED, 1) * local_size * self.nodes

    @property
    def _leaves_out(self) -> bool:
        return len(self.members) < self.nodes

    def _send_pieces(self, part: Part, chunk: _Chunk, slot: _Slot) -> None:
        """My shard of the chunk, one piece to each node; from each node comes my piece."""
        size = self.nodes * chunk.piece
        mine, theirs = slot.mine[:size], slot.theirs[:size]
        place = 0 if part.is_shard else self.place
        part.read(chunk.begin + place * size, mine)
        column = self.inner(part.device.type, "column")
        slot.work = column.alltoall_base(as_bytes(theirs), as_bytes(mine), [], [])
        self.count((self.nodes - 1) * chunk.piece * part.dtype.itemsize)

    def _return_mean(self, part: Part, chunk: _Chunk, slot: _Slot) -> None:
        """The mean of my piece goes to the peers, theirs come: my shard is whole again."""
        slot.wait()
        size = self.nodes * chunk.piece
        mean = slot.mean[: chunk.piece]
        self._mean(mean, slot.theirs[:size].view(self.nodes, -1))
        column = self.inner(part.device.type, "column")
        slot.work = column._allgather_base(as_bytes(slot.mine[:size]), as_bytes(mean))
        self.count((self.nodes - 1) * mean.nbytes)

    def _mean(self, out: torch.Tensor, pieces: torch.Tensor) -> None:
        """Of the members' pieces, where they lie; on the host, to the same bits, for want of a
        kernel."""
        if is_on_gpu(out) and self.has_kernel and len(self.members) <= _C.CUDA_MEAN_INPUTS:
            given = pieces[self.members] if self._leaves_out else pieces
            try:
                with torch.cuda.device(out.device):
                    stream = torch.cuda.current_stream().cuda_stream
                    _C.cuda_mean(out, given, self.weights, stream)
                return
            except NotImplementedError as error:
                log("warn", f"means of tensors on a GPU are taken on the CPU: {error}")
                self.has_kernel = False
        on_host = pieces.cpu()
        result = torch.empty_like(out, device="cpu") if is_on_gpu(out) else out
        _C.mean(result, [on_host[node] for node in self.members], self.weights)
        if result is not out:
            out.copy_(result)

    def _to_node(self, part: Part, chunk: _Chunk, slot: _Slot) -> None:
        """My shard goes to the node's other ranks, theirs come: the chunk is whole."""
        slot.wait()
        shard = slot.mine[: self.nodes * chunk.piece]
        result = part.result[chunk.begin : chunk.begin + chunk.span]
        if part.is_shard:
            slot.copy = (result, shard)
            return
        whole = slot.whole[: chunk.span] if part.is_staged else result
        node = self.inner(part.device.type, "node")
        slot.work = node._allgather_base(as_bytes(whole), as_bytes(shard))
        if part.is_staged:
            slot.copy = (result, whole)


def _in_huge_pages(count: int, dtype: torch.dtype) -> torch.Tensor:
    """An empty row in huge pages where the system gives them on request: for a model's size, the
    faults of small pages cost as much as the arithmetic."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, max(count * dtype.itemsize, 1), flags=flags)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)
