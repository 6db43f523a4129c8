# SPDX-License-Identifier: MIT
"""The files that the script writes, however it writes them.

torch.save and safetensors open a file by its name from C++ and Rust; they are watched apart.
All that Python opens, renames and links is heard of by its audit events (PEP 578): a buffer that is
written later, a temporary name, a library's file system, a copy. The first bytes tell at the end
which of these files hold weights.

Rejected: patches of open, os.replace and their like (a library that has imported one by name goes
past them); a look at the folders of the script (they may hold anything, of any run).
"""

import os
import sys
import zipfile
from dataclasses import dataclass, field
from typing import Any

from lofi.files import contents
from lofi.job import job
from lofi.job.job import PerJob
from lofi.models import training

_MOST_FILES = 4096  # that are remembered
_ZIP = b"PK\x03\x04"
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number of torch
_WRITES = os.O_WRONLY | os.O_RDWR


@dataclass
class Written:
    """Paths, with the step count at the time of writing; the last one written comes last."""

    steps: dict[str, int] = field(default_factory=dict)


_written = PerJob(Written)


@dataclass
class _Hook:
    is_in: bool = False


_hook = _Hook()


def watch() -> None:
    """Begin to note them. Python keeps an audit hook for as long as it runs."""
    if not _hook.is_in:
        _hook.is_in = True
        sys.addaudithook(_audit)


def note(path: Any) -> None:
    """The script writes this file."""
    files, full = _written().steps, os.path.abspath(os.fsdecode(path))
    files.pop(full, None)
    files[full] = training.state().steps
    if len(files) > _MOST_FILES:
        files.pop(next(iter(files)), None)


def at_step(steps: int) -> list[str]:
    """The files that were written at this step count, and hold weights."""
    return [path for path, at in _written().steps.items() if at == steps and kind_of(path)]


def newest() -> list[str]:
    """All files that hold weights, the last one written first."""
    return [path for path in reversed(_written().steps) if kind_of(path)]


def steps_of(path: str) -> int:
    return _written().steps.get(path, 0)


def kind_of(path: str) -> str:
    """How the file holds weights, by its first bytes: "zip" or "legacy" of torch.save,
    "safetensors", or "" for any other file."""
    try:
        if not os.path.isfile(path):
            return ""
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError:
        return ""
    if head.startswith(_ZIP):
        return "zip" if _is_of_torch(path) else ""
    if head.startswith(_TORCH_LEGACY):
        return "legacy"
    size = int.from_bytes(head[:8], "little")
    return "safetensors" if head[8:9] == b"{" and size < os.path.getsize(path) else ""


def _is_of_torch(archive: str) -> bool:
    try:
        with zipfile.ZipFile(archive) as file:
            return any(name.endswith("/data.pkl") for name in file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event not in ("open", "os.rename", "os.link"):
        return
    try:
        if not _is_of_script():
            return
        if event == "open":
            path, mode, flags = args
            if isinstance(path, (str, bytes, os.PathLike)) and _is_writing(mode, flags):
                note(path)
        elif args[2] == args[3] == -1:  # relative to no other folder
            _moved(args[0], args[1], is_gone=event == "os.rename")
    except Exception:  # whatever it is, the script's own call must go on
        return


def _is_of_script() -> bool:
    here = job.current()
    return here.spans_nodes and here.pid == os.getpid() and not contents.is_saving()


def _is_writing(mode: Any, flags: Any) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & _WRITES)


def _moved(source: Any, target: Any, is_gone: bool) -> None:
    """A file, or a folder with files, has got another name, or one more."""
    files = _written().steps
    old, new = (os.path.abspath(os.fsdecode(path)) for path in (source, target))
    for path in [p for p in files if p == old or p.startswith(old + os.sep)]:
        steps = files.pop(path) if is_gone else files[path]
        files[new + path[len(old) :]] = steps
