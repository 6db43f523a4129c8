# SPDX-License-Identifier: MIT
"""The steps of a soup as a picture. matplotlib is needed for this alone."""

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any


def check(path: str) -> None:
    """Refuse what draw() could not do, before hours of scoring."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        sys.exit("lofi: --plot needs matplotlib: pip install matplotlib")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        sys.exit(f"lofi: {path}: there is no folder to write it to")


def draw(steps: Iterable[Mapping[str, Any]], path: str) -> None:
    """Write a picture of steps as `lofi soup --csv` writes them, in the format that the path's
    ending names."""
    from matplotlib.figure import Figure

    steps = list(steps)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_ylabel("score")
    axes.grid(alpha=0.3)
    if steps[0]["trial"] == "alpha":
        _draw_alphas(axes, steps)
    else:
        _draw_greedy(axes, steps)
    axes.legend()
    figure.savefig(path)


def _draw_alphas(axes: Any, steps: list[Mapping[str, Any]]) -> None:
    points = sorted((float(s["alpha"]), float(s["score"])) for s in steps)
    kept = [s for s in steps if int(s["kept"])]
    axes.plot(*zip(*points, strict=True), "o-", label="(1 - alpha) · base + alpha · tuned")
    axes.plot(float(kept[0]["alpha"]), float(kept[0]["score"]), "*", ms=18, label="written")
    axes.set_xlabel("alpha")


def _draw_greedy(axes: Any, steps: list[Mapping[str, Any]]) -> None:
    alone = {s["checkpoint"]: float(s["score"]) for s in steps if s["trial"] == "alone"}
    added = [s for s in steps if s["trial"] == "add"]
    scores = [float(s["score"]) for s in added]
    kept = [n for n, s in enumerate(added) if int(s["kept"])]
    left = [n for n, s in enumerate(added) if not int(s["kept"])]
    names = [os.path.basename(s["checkpoint"].rstrip("/")) for s in added]
    places = range(len(added))
    axes.plot(places, [alone[s["checkpoint"]] for s in added], "s", c="0.6", label="by itself")
    soup = [scores[max(k for k in kept if k <= n)] for n in places]
    axes.plot(places, soup, drawstyle="steps-post", c="C0", label="soup")
    axes.plot(kept, [scores[n] for n in kept], "o", c="C0", label="mean with it: kept")
    axes.plot(left, [scores[n] for n in left], "x", c="C3", label="mean with it: not kept")
    axes.set_xticks(places, names, rotation=45, ha="right")
