# SPDX-License-Identifier: MIT
"""Adapters in files of torch.save: found by their names, as c_api/merge/lora.c finds those in
safetensors files."""

import re

import torch

from lofi.job.log import log

FACTOR = re.compile(r"(^|\.)lora_(embedding_)?(A|B)(\.|$)")


def warn_of_mean(found: list[dict[str, torch.Tensor]], averaged: set[str], label: str) -> None:
    """Warn if the mean of the factors is not that of their products: if both A and B differ.

    found: the tensors of each input by name; averaged: the names that the average takes.
    """
    differs = {
        match[3]
        for name in averaged & found[0].keys()
        if (match := FACTOR.search(name))
        and any(_differ(found[0][name], other.get(name)) for other in found[1:])
    }
    if differs == {"A", "B"}:
        log(
            "warn",
            f"{label}: it has LoRA factors: the mean of A and of B are not the mean of the "
            "products B A, which adapters add to a model, nor are their scales compared; lora= "
            "averages the products of adapters that are saved as safetensors",
        )


def _differ(first: torch.Tensor, other: torch.Tensor | None) -> bool:
    """In double, since not every dtype can be compared."""
    return other is None or not torch.equal(first.double(), other.double())
