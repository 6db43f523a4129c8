# SPDX-License-Identifier: MIT
"""The outcome of an average, before it is written into the tensors."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lofi.models.items import Item


@dataclass
class Change:
    """A tensor of the target, and what comes in its place: flat, on the CPU (see `flat`)."""

    item: "Item"
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
