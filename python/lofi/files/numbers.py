# SPDX-License-Identifier: MIT
"""The mean of tensors in files, and numbers that it should not have: c_api/merge/mix.c and
findings.c do the same for safetensors."""

from collections.abc import Sequence

import torch

from lofi.job.log import log
from lofi.job.native import _C

_LINES_MOST = 10
_PART = 1 << 20  # numbers that are looked at at once
_E4M3_ROUNDED = 464.0  # up to here 448, the largest number of float8_e4m3fn, is the nearest


class Mix:
    """A mean with weights, and a base: the factor 0 leaves out, since 0 * NaN is NaN."""

    def __init__(
        self,
        inputs: int,
        weights: Sequence[float] | None,
        has_base: bool,
        alpha: float,
        are_raw: bool = False,
    ) -> None:
        given = [1.0] * inputs if weights is None else list(weights)
        self.alpha, self.are_raw = alpha, are_raw
        self.has_base = has_base and alpha * (sum(given) if are_raw else 1) != 1
        if has_base and alpha == 0:  # the base alone
            self.mixed, self.weights, self.has_base = [False] * inputs + [True], [1.0], False
            return
        # Weights that are all 0 are refused by whoever takes the mean.
        self.mixed = [weight != 0 or not any(given) for weight in given]
        self.weights = [w for w, is_mixed in zip(given, self.mixed, strict=True) if is_mixed]
        if has_base:
            self.mixed.append(self.has_base)

    def run(self, out: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
        """Writes the mean of the inputs and the base, which is the last."""
        taken = [one for one, is_mixed in zip(tensors, self.mixed, strict=True) if is_mixed]
        base = taken.pop() if self.has_base else None
        _C.mean(out, taken, self.weights, base, self.alpha, self.are_raw)


class Findings:
    """Collects what is found in the tensors of an average; `tell` logs it."""

    def __init__(self, labels: Sequence[str], mix: Mix) -> None:
        self.labels, self.mix = labels, mix
        self.lines: list[str] = []

    def look(self, name: str, out: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
        """At a mean, and at the tensors that it is of."""
        rows, result = [_numbers(one) for one in tensors], _numbers(out)
        mixed = self.mix.mixed
        idle = [row for row, is_mixed in zip(rows, mixed, strict=True) if not is_mixed]
        if not _may_be_odd(result) and all(_C.find_nonfinite(row) < 0 for row in idle):
            return
        counts = [0] * (len(rows) + 1)
        for begin in range(0, result.numel(), _PART):
            part = slice(begin, begin + _PART)
            found = self._look_closely(result[part], [row[part] for row in rows])
            counts = [a + b for a, b in zip(counts, found, strict=True)]
        *of_rows, large = counts
        for label, count, is_mixed in zip(self.labels, of_rows, mixed, strict=True):
            so = "they spoil the average"
            if not is_mixed:
                so = "they are left out of the average, with the factor 0"
            what = f"has NaN or infinities ({count} of {result.numel()} numbers)"
            if count:
                self.lines.append(f"{label}: the tensor '{name}' {what}: {so}")
        if large:
            kind = str(out.dtype).removeprefix("torch.")
            self.lines.append(
                f"in the tensor '{name}' the average is beyond the range of {kind} "
                f"({large} of {result.numel()} numbers)"
            )

    def _look_closely(self, result: torch.Tensor, rows: list[torch.Tensor]) -> list[int]:
        """How many of each row, and, last, how many results are too large."""
        wide = result.double()
        bad, same = (
            torch.zeros_like(wide, dtype=torch.bool),
            torch.ones_like(wide, dtype=torch.bool),
        )
        for row, is_mixed in zip(rows, self.mix.mixed, strict=True):
            if is_mixed:
                bad |= ~row.double().isfinite()
                same &= row.double() == wide  # a mask of infinities, say
        counts = []
        for row, is_mixed in zip(rows, self.mix.mixed, strict=True):
            here = ~row.double().isfinite()
            counts.append(int((here & ~same if is_mixed else here).sum()))
        if result.dtype == torch.float8_e4m3fn:
            self.mix.run(wide, rows)
            large = ~(wide.abs() <= _E4M3_ROUNDED)
        else:
            large = ~wide.isfinite()
        return [*counts, int((large & ~bad).sum())]

    def tell(self) -> None:
        for line in self.lines[:_LINES_MOST]:
            log("warn", line)
        if len(self.lines) > _LINES_MOST:
            log("warn", f"and {len(self.lines) - _LINES_MOST} more of the kind")


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def _may_be_odd(result: torch.Tensor) -> bool:
    if result.dtype == torch.float8_e4m3fn:  # infinity is its largest number there
        return bool((result.view(torch.uint8) & 0x7F >= 0x7E).any())
    return _C.find_nonfinite(result) >= 0
