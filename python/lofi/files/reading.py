# SPDX-License-Identifier: MIT
"""A file of torch.save, or the sentence that says why it is none."""

from typing import Any

from lofi.files.contents import load_pickled, refused_classes
from lofi.job.native import _C


def load(path: str) -> Any:
    try:
        return load_pickled(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        _refuse_foreign(path)
        names = refused_classes(path)
        why = f"it names {', '.join(names)}" if names else _reason(error)
        raise ValueError(
            f"lofi: {path} can't be read safely: it is damaged or cut short, or holds more than "
            "tensors and plain values, such as a whole module; save its state_dict() instead, or "
            f"allow its classes with torch.serialization.add_safe_globals ({why})"
        ) from error


def _refuse_foreign(path: str) -> None:
    """Raises the sentence for what torch.save did not write: a pointer of Git LFS, a web page."""
    with open(path, "rb") as file:
        head = file.read(2)
    if head == b"PK" or (len(head) == 2 and head[0] == 0x80 and head[1] <= 5):
        return
    try:
        _C.open_checkpoint(path)
    except (ValueError, RuntimeError) as error:
        why = str(error).split("\n")[0].removeprefix(f"lofi: {path}: ")
    else:
        why = "it is one of safetensors: give it a name that ends in .safetensors"
    raise ValueError(f"lofi: {path} is no file of torch.save: {why}")


def _reason(error: Exception) -> str:
    """torch advises over many lines: the one that names the class is taken, else the first."""
    lines = [line.strip() for line in str(error).splitlines()] or [""]
    return next((line for line in lines if "GLOBAL" in line), lines[0])[:300]
