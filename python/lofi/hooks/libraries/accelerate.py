# SPDX-License-Identifier: MIT
"""Accelerate: its data loaders broadcast the random generators' state at each epoch, to keep the
ranks of a job alike. While nodes train apart, each does it for itself."""

from typing import Any

from lofi.job.patch import when_imported, wrap
from lofi.job.phases import by_wrapper


def install() -> None:
    when_imported(
        "accelerate.utils.random",
        lambda module: wrap(module, "synchronize_rng_state", _synchronize),
    )


def _synchronize(original: Any, *args: Any, **kwargs: Any) -> Any:
    with by_wrapper():
        return original(*args, **kwargs)
