# SPDX-License-Identifier: MIT
"""The oracle's rounding, by exact fractions."""

from fractions import Fraction

import pytest
import torch

from harness import truth

# Bits of the significand, and the exponent of the smallest step.
FORMATS = {torch.float32: (24, -149), torch.float16: (11, -24), torch.bfloat16: (8, -133)}


def by_fractions(value: float, dtype: torch.dtype) -> float:
    """A double to the nearest value of a format, ties to even."""
    if value == 0:
        return value
    bits, smallest = FORMATS[dtype]
    exact = Fraction(value)
    exponent = 0
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** max(exponent - bits + 1, smallest)
    return float(round(exact / step) * step)  # round() of a Fraction is to even


@pytest.mark.parametrize("dtype", list(FORMATS))
def test_rounded_once(dtype):
    bits, smallest = FORMATS[dtype]
    generator = torch.Generator().manual_seed(bits)
    near = torch.randn(3000, generator=generator, dtype=torch.float64)
    near *= torch.exp(3 * torch.randn(3000, generator=generator, dtype=torch.float64))
    near[:1000] *= 2.0 ** (smallest + bits)  # subnormal ones, and those around
    short = near.to(dtype).double()
    steps = 2.0 ** (torch.floor(torch.log2(short.abs())) - bits + 1)
    ties = (
        short + steps / 2
    )  # half way, to an even or an odd neighbour; just off it, by a double's bit
    values = torch.cat(
        [near, ties, torch.nextafter(ties, near * 0), torch.nextafter(ties, near * 9)]
    )
    values = values[torch.isfinite(values)].clamp(-6e4, 6e4)
    want = torch.tensor([by_fractions(value, dtype) for value in values.tolist()])
    assert torch.equal(truth.rounded(values, dtype).double(), want.double())


def test_ends_of_the_range():
    values = torch.tensor([float("inf"), -float("inf"), 1e300, 70000.0, 65519.999, 0.0])
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(truth.rounded(values.double(), dtype), values.double().float().to(dtype))


def test_kinds():
    first, second = torch.tensor([1, 2]), torch.tensor([5, 6])
    assert torch.equal(truth.mean([first, second]), first)
    both = [torch.tensor([1 + 2j]), torch.tensor([3 - 4j])]
    assert torch.equal(truth.mean(both), torch.tensor([2 - 1j]))
    assert truth.mean([torch.tensor(1.0), torch.tensor(4.0)], [2.0, 1.0]) == 2.0
    mixed = truth.mean([torch.tensor(4.0)], base=torch.tensor(0.0), alpha=0.25)
    assert mixed == 1.0
