# SPDX-License-Identifier: MIT
"""The mean over nodes, by its definition and without lofi: what averages are compared with.

((w0*x0 + w1*x1) + ...) / (w0 + w1 + ...), in float64 and in the order of the nodes, each operation
rounded; with a base (1 - alpha)*base + alpha*mean; then rounded once to the dtype, to nearest even.
Integers and booleans are the first node's. test_truth.py holds the rounding to exact fractions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def formula(
    inputs: Sequence[Any],
    weights: Sequence[float] | None = None,
    base: Any = None,
    alpha: float = 1.0,
) -> Any:
    """Of arrays of float64, torch's or numpy's; not rounded."""
    weights = [1.0] * len(inputs) if weights is None else weights
    total, weight_sum = inputs[0] * weights[0], weights[0]
    for value, weight in zip(inputs[1:], weights[1:], strict=True):
        total = total + value * weight
        weight_sum = weight_sum + weight
    mean = total / weight_sum
    return mean if base is None else base * (1.0 - alpha) + mean * alpha


def rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 to another float, rounded once. torch goes to short floats by way of float32; so that
    this does not round twice, float32 gets the odd one of two neighbours (Boldo and Melquiond
    2008)."""
    single = values.float()
    if dtype.itemsize >= 4:
        return values.to(dtype)
    bits = single.view(torch.int32)
    back = single.double()
    wants_odd = (back != values) & (bits & 1 == 0) & torch.isfinite(single)
    # Bits of a float grow with its magnitude.
    odd = torch.where(back.abs() > values.abs(), bits - 1, bits + 1)
    return torch.where(wants_odd, odd, bits).view(torch.float32).to(dtype)


def mean(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    base: torch.Tensor | None = None,
    alpha: float = 1.0,
) -> torch.Tensor:
    first = tensors[0]
    if first.is_complex():
        parts = [torch.view_as_real(tensor) for tensor in tensors]
        return torch.view_as_complex(mean(parts, weights))
    if not first.is_floating_point():
        return first
    wide = formula(
        [tensor.double() for tensor in tensors],
        weights,
        None if base is None else base.double(),
        alpha,
    )
    return rounded(wide, first.dtype)


def mean_of_states(
    *nodes: Mapping[str, torch.Tensor], weights: Sequence[float] | None = None
) -> dict[str, torch.Tensor]:
    """Of state dicts, name by name."""
    return {name: mean([node[name] for node in nodes], weights) for name in nodes[0]}
