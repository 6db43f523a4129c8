# SPDX-License-Identifier: MIT
"""The outcome of an average, before it is written into the tensors."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lofi.average import rows

if TYPE_CHECKING:
    from lofi.models.items import Item


@dataclass
class Change:
    """A tensor of the target, and the row on the CPU that comes in its place (see rows.flat)."""

    item: "Item"
    values: torch.Tensor

    def write(self) -> None:
        rows.write(self.item.tensor, self.values)


@dataclass
class Result:
    """What was averaged. Nothing has been written yet."""

    nodes: list[int]  # that are in it
    weights: list[float]  # of these
    averaged: int  # tensors that differed between nodes
    bytes_sent: int  # payload, by this rank's node, to other nodes
    changes: list[Change]
