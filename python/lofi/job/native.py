# SPDX-License-Identifier: MIT
"""Loads the native module, with a sentence where it can't be loaded."""

import torch

try:
    from lofi import _C
except ImportError as error:
    raise ImportError(
        f"lofi: the native module does not load with torch {torch.__version__} ({error}). It was "
        "built for another torch or Python: run `pip install --no-build-isolation "
        "--force-reinstall --no-deps .` in the sources of lofi with the torch of this environment."
    ) from error

if not torch.__version__.startswith(_C.torch_version + "."):
    raise ImportError(
        f"lofi: the native module was built for torch {_C.torch_version}, this is "
        f"{torch.__version__}: reinstall lofi in this environment."
    )

__all__ = ["_C"]
