# SPDX-License-Identifier: MIT
"""Tensors as rows of elements that liblofi knows, and back."""

from collections.abc import Iterator, Sequence

import torch

from lofi.average import device


class Row:
    """Tensors of one dtype and device, end to end."""

    def __init__(self, tensors: Sequence[torch.Tensor]):
        self.tensors = list(tensors)
        self.dtype, self.device = row_dtype(self.tensors[0]), self.tensors[0].device
        self.counts = [tensor.nbytes // self.dtype.itemsize for tensor in self.tensors]
        self.count = sum(self.counts)
        self.is_on_gpu = device.gpu.holds(self.tensors[0])
        # The last tensor that had to be copied to be flat: one at a time.
        self._held: tuple[int, torch.Tensor] | None = None

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

    def split(self, result: torch.Tensor) -> Iterator[torch.Tensor]:
        """Of a row like this one, what belongs to each tensor, flat."""
        offset = 0
        for length in self.counts:
            yield result[offset : offset + length]
            offset += length

    def _flat(self, index: int) -> torch.Tensor:
        tensor = self.tensors[index]
        if tensor.is_contiguous():
            return flat(tensor)
        if self._held is None or self._held[0] != index:
            self._held = (index, flat(tensor.contiguous()))
        return self._held[1]


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a tensor in a row: complex numbers as pairs, integers as bytes."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    row = tensor.reshape(-1)
    return row if row.is_floating_point() else row.view(torch.uint8)


def write(tensor: torch.Tensor, row: torch.Tensor) -> None:
    """Put a row that `flat` made into a tensor."""
    if tensor.is_complex():
        values = torch.view_as_complex(row.view(*tensor.shape, 2))
    else:
        values = row.view(tensor.dtype).view(tensor.shape)
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:  # expanded: one element seen many times
            tensor, values = tensor.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
    tensor.copy_(values)


def row_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype of the row that `flat` makes."""
    if tensor.is_complex():
        return tensor.dtype.to_real()
    return tensor.dtype if tensor.is_floating_point() else torch.uint8


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8)
