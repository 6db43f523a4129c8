# SPDX-License-Identifier: MIT
"""The program lofi (average, info, diff), which is installed with this package, by its side.

    python -m lofi average run1/ run2/ -o average/

runs it where its folder is not on PATH. It is a program of C: nothing here imports torch.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

COMMANDS = ("average", "info", "diff")
_DISTRIBUTION = "torch-lofi"


def is_asked_for(arguments: list[str]) -> bool:
    """Whether these arguments of `python -m lofi` are the program's; all others name a script."""
    return bool(arguments) and arguments[0] in COMMANDS


def is_starting() -> bool:
    """Whether Python imports the package on its way to `python -m lofi average` and the like."""
    if sys.argv[:1] != ["-m"] or not is_asked_for(sys.argv[1:]):
        return False
    # Python also takes the module in one word with its options: -mlofi, -umlofi.
    word = sys.orig_argv[-len(sys.argv) :][0]
    return word == "lofi" or (word.startswith("-") and word.partition("m")[2] == "lofi")


def find() -> str | None:
    """The program that was installed with this package; else one that is on PATH."""
    for path in _candidates():
        if path.is_file() and os.access(path, os.X_OK):
            return str(path.resolve())
    return shutil.which("lofi")


def _candidates() -> Iterator[Path]:
    try:
        files = metadata.files(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        files = []
    yield from (Path(str(file.locate())) for file in files if file.name == "lofi")
    # pip install --target moves the program here, and its list of files still has the old place.
    yield Path(__file__).resolve().parents[1] / "bin" / "lofi"


def run(arguments: list[str]) -> None:
    """Become the program. Returns never."""
    program = find()
    if program is None:
        sys.exit(
            f"lofi: the program for `{arguments[0]}` is not found: it comes with this package when "
            "pip installs it (pip install --no-build-isolation .), and with cmake --install; its "
            "folder has to be on PATH"
        )
    os.execv(program, ["lofi", *arguments])
