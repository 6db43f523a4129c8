# SPDX-License-Identifier: MIT
"""lofi: lo-fi fine-tuning as a torch.distributed backend.

Gradients are all-reduced inside a node only, nothing crosses nodes while training, and
`finalize_average` averages the nodes' weights at the end (Wortsman et al. 2022, arXiv 2210.11948).

Importing this package registers the backend "lofi" with torch.distributed and does nothing else:
the native code is loaded, and torch is hooked into, when the first lofi group is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lofi._version import VERSION as __version__

# Public name -> the module that has it, imported at first use.
_PUBLIC = {
    "Average": "_average",
    "averaged": "_average",
    "average_checkpoints": "_files",
    "Communicator": "_communicators",
    "communicators": "_communicators",
    "release_communicators": "_communicators",
    "finalize_average": "_average",
    "configure": "_config",
    "scope": "_phases",
    "start": "_phases",
    "stats": "_phases",
    "phase": "_phases",
}
__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from lofi._average import Average as Average
    from lofi._average import averaged as averaged
    from lofi._average import finalize_average as finalize_average
    from lofi._communicators import Communicator as Communicator
    from lofi._communicators import communicators as communicators
    from lofi._communicators import release_communicators as release_communicators
    from lofi._config import configure as configure
    from lofi._files import average_checkpoints as average_checkpoints
    from lofi._phases import phase as phase
    from lofi._phases import scope as scope
    from lofi._phases import start as start
    from lofi._phases import stats as stats


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lofi' has no attribute {name!r}")

    return getattr(import_module(f"lofi.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    import torch

    # Inside `import torch` its entry point registers lofi, and lets no error break torch.
    if getattr(torch.__spec__, "_initializing", False):
        return

    from lofi._register import register

    register()


_register()
