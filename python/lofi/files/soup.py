# SPDX-License-Identifier: MIT
"""Averages of checkpoints that are chosen by scores: `lofi soup` with a function of Python, and for
torch's formats, too. The search is that of c_api/merge/soup.c."""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lofi import plot
from lofi.files.checkpoints import average_checkpoints
from lofi.job.native import _C

Score = Callable[[str], float]


@dataclass(frozen=True)
class Step:
    trial: str  # "alone": a checkpoint by itself; "add": the mean with it; "alpha"
    score: float
    checkpoint: str = ""
    alpha: float | None = None
    kept: bool = False


@dataclass
class Soup:
    """What was tried, and what was written."""

    score: float = math.nan
    kept: list[str] = field(default_factory=list)  # the paths that the output is a mean of
    alpha: float | None = None
    steps: list[Step] = field(default_factory=list)

    def plot(self, path: str | os.PathLike) -> None:
        """Draw the steps into a file (.png, .pdf, ...) with matplotlib."""
        plot.draw([asdict(step) for step in self.steps], os.fspath(path))


def soup(
    paths: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    score: Score,
    *,
    base: str | os.PathLike | None = None,
    alphas: Sequence[float] | None = None,
    lower: bool = False,
    **how: Any,
) -> Soup:
    """Write the average of checkpoints that scores best, in any format of `average_checkpoints`.

    score: is called with the path of a checkpoint and returns a finite number; a mean is written
        for it beside `out`, and removed after the call.
    base, alphas: without them it is a greedy soup (Wortsman et al. 2022, recipe 1): sorted by their
        own scores, checkpoints join the mean one by one if it does not score lower. With them,
        (1 - alpha) * base + alpha * average of `paths` is scored for each alpha (WiSE-FT).
    lower: a lower score is better, as of losses.
    how: further arguments of `average_checkpoints`; weights only with alphas.
    """
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise TypeError(f"lofi: paths is {paths!r}: it has to be a list of paths")
    if (base is None) != (alphas is None) or (alphas is not None and not len(alphas)):
        raise ValueError("lofi: base and alphas belong together: give both, or neither")
    if alphas is None and "weights" in how:
        raise ValueError("lofi: a greedy soup is a mean of equals: leave weights out")
    target, result = os.fspath(out), Soup()
    for path in [*paths, *([base] if base is not None else [])]:
        if os.path.realpath(path) == os.path.realpath(target):
            raise ValueError(f"lofi: {target} is an input: write elsewhere")
    if os.path.lexists(target) and not how.get("force"):
        raise FileExistsError(f"lofi: {target} exists; force=True replaces it")
    search = _Search([os.fspath(path) for path in paths], target, score, lower, how, result)
    if base is not None and alphas is not None:
        search.alphas(os.fspath(base), alphas)
        average_checkpoints(search.paths, out, base=base, alpha=result.alpha, **how)
    else:
        search.greedy()
        average_checkpoints(result.kept, out, **how)
    return result


@dataclass
class _Search:
    paths: list[str]
    out: str
    score: Score
    lower: bool
    how: dict[str, Any]
    result: Soup

    def value(self, path: str) -> float:
        value = float(self.score(path))
        if not math.isfinite(value):
            raise ValueError(f"lofi: the score of {path} is {value}: it has to be finite")
        return value

    def mean(self, paths: list[str], is_scored: bool = True, **how: Any) -> float:
        parent = os.path.dirname(os.path.abspath(self.out))
        with tempfile.TemporaryDirectory(dir=parent, prefix=".lofi-soup-") as folder:
            path = os.path.join(folder, os.path.basename(os.path.normpath(self.out)))
            _C.hold_log()  # a warning is told once, of the output
            try:
                average_checkpoints(paths, path, **{**self.how, **how})
            finally:
                _C.release_log()
            return self.value(path) if is_scored else math.nan

    def is_better(self, a: float, b: float) -> bool:
        return a < b if self.lower else a > b

    def greedy(self) -> None:
        self.mean(self.paths, is_scored=False)  # so that what can't be averaged shows at once
        alone = [Step("alone", self.value(path), path) for path in self.paths]
        self.result.steps += alone
        for step in sorted(alone, key=lambda step: step.score * (1 if self.lower else -1)):
            tried = [*self.result.kept, step.checkpoint]
            score = self.mean(tried) if self.result.kept else step.score
            kept = not (self.result.kept and self.is_better(self.result.score, score))
            if kept:
                self.result.kept, self.result.score = tried, score
            self.result.steps.append(Step("add", score, step.checkpoint, kept=kept))

    def alphas(self, base: str, alphas: Sequence[float]) -> None:
        scores = [self.mean(self.paths, base=base, alpha=alpha) for alpha in alphas]
        best = min(range(len(scores)), key=lambda i: scores[i] * (1 if self.lower else -1))
        self.result.kept, self.result.score = self.paths, scores[best]
        self.result.alpha = alphas[best]
        for i, (alpha, score) in enumerate(zip(alphas, scores, strict=True)):
            self.result.steps.append(Step("alpha", score, alpha=alpha, kept=i == best))
