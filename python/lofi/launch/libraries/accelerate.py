# SPDX-License-Identifier: MIT
"""Accelerate: its data loaders broadcast the random generators' state at each epoch, to keep the
ranks of a job alike. While nodes train apart, each does it for itself."""

from typing import Any

from lofi.hooks.ddp import by_wrapper
from lofi.hooks.patch import when_imported, wrap


def install() -> None:
    when_imported(
        "accelerate.utils.random",
        lambda module: wrap(module, "synchronize_rng_state", _synchronize),
    )


def _synchronize(original: Any, *args: Any, **kwargs: Any) -> Any:
    with by_wrapper():
        return original(*args, **kwargs)
