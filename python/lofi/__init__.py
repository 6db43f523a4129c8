# SPDX-License-Identifier: MIT
"""lofi: lo-fi fine-tuning as a torch.distributed backend.

Gradients are all-reduced inside a node only, nothing crosses nodes while training, and
`finalize_average` averages the nodes' weights at the end (Wortsman et al. 2022, arXiv 2210.11948).

Importing this package registers the backend "lofi" with torch.distributed and does nothing else:
the native code is loaded, and torch is hooked into, when the first lofi group is made.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lofi._version import VERSION as __version__
from lofi.features import FEATURES

# Public name -> the module that has it, imported at first use.
_PUBLIC = {
    "Average": "average.finalize",
    "averaged": "average.finalize",
    "Communicator": "groups.communicators",
    "communicators": "groups.communicators",
    "release_communicators": "groups.communicators",
    "finalize_average": "average.finalize",
    "configure": "job.config",
    "scope": "job.phases",
    "start": "job.phases",
    "stats": "job.phases",
    "phase": "job.phases",
    **{name: feature.module for feature in FEATURES for name in feature.names},
}
__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from lofi.average.finalize import Average as Average
    from lofi.average.finalize import averaged as averaged
    from lofi.average.finalize import finalize_average as finalize_average
    from lofi.files.checkpoints import average_checkpoints as average_checkpoints
    from lofi.files.soup import soup as soup
    from lofi.groups.communicators import Communicator as Communicator
    from lofi.groups.communicators import communicators as communicators
    from lofi.groups.communicators import release_communicators as release_communicators
    from lofi.job.config import configure as configure
    from lofi.job.phases import phase as phase
    from lofi.job.phases import scope as scope
    from lofi.job.phases import start as start
    from lofi.job.phases import stats as stats


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lofi' has no attribute {name!r}")

    return getattr(import_module(f"lofi.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    if sys.argv[:1] == ["-m"]:  # Python is on its way to a module
        from lofi import program

        if program.is_starting():  # which needs no torch
            return

    import torch

    # Inside `import torch` its entry point registers lofi, and lets no error break torch.
    if getattr(torch.__spec__, "_initializing", False):
        return

    from lofi.groups.register import register

    register()


_register()
