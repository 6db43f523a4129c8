# SPDX-License-Identifier: MIT
"""The table of features: one line for each, and the only place that names them.

A feature is a Python package or module with a function `install()`, which subscribes to events and
hooks into libraries. It may add names to `lofi` and settings `LOFI_<NAME>`. With it come, where it
needs them, one folder of c_api with a header in c_api/lofi, and one file of backend/bind.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Setting:
    """The variable LOFI_<NAME>, and the argument of `lofi.configure` of the same meaning."""

    name: str
    default: object
    # Its values: one of these words; or "flag" (0, 1), "count" (a whole number >= 1),
    # "seconds" (a number > 0), "text".
    kind: tuple[str, ...] | str
    is_shared: bool = False  # it must be the same on every rank, which is checked at start


@dataclass(frozen=True)
class Feature:
    module: str  # within lofi
    names: tuple[str, ...] = ()  # that `lofi` offers, from this module
    settings: tuple[Setting, ...] = ()
    is_launched: bool = False  # only scripts under `-m lofi` have it


LAUNCHER = "launch.main"  # its take_over() makes a process one of the launcher's

FEATURES = (
    Feature("hooks"),
    Feature("hooks.libraries.accelerate"),
    Feature("hooks.libraries.lightning"),
    Feature("files.checkpoints", names=("average_checkpoints",)),
    Feature("files.soup", names=("soup",)),
    Feature(
        "launch.evaluation",
        settings=(
            Setting("eval", "averaged", ("averaged", "node"), is_shared=True),
            Setting("eval_wait", 30.0, "seconds"),  # of a rank for those of its node
        ),
        is_launched=True,
    ),
    Feature(
        "launch.saved",
        settings=(Setting("save", "beside", ("beside", "inplace", "off"), is_shared=True),),
        is_launched=True,
    ),
    Feature(
        "launch.signals",
        settings=(Setting("on_sigterm", "exit", ("exit", "average"), is_shared=True),),
        is_launched=True,
    ),
    Feature("launch.ending", is_launched=True),
    Feature("launch.libraries.ema", is_launched=True),
    Feature("launch.libraries.trainer", is_launched=True),
)

_installed: set[str] = set()


def install(is_launched: bool) -> None:
    """Install the features of scripts under the launcher, or those of all jobs, once."""
    _install(feature for feature in FEATURES if feature.is_launched == is_launched)


def _install(features: Iterable[Feature]) -> None:
    for feature in features:
        if feature.module in _installed:
            continue
        _installed.add(feature.module)
        module = import_module(f"lofi.{feature.module}")
        if hasattr(module, "install"):
            module.install()


def take_over() -> None:
    """This process runs a script under the launcher."""
    import_module(f"lofi.{LAUNCHER}").take_over()
