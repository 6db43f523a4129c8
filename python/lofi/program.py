# SPDX-License-Identifier: MIT
"""The program lofi (average, info, diff), which is installed with this package, by its side.

    python -m lofi average run1/ run2/ -o average/

runs it where its folder is not on PATH. It is a program of C: nothing here imports torch.
"""

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

COMMANDS = ("average", "info", "diff")
_DISTRIBUTION = "torch-lofi"


def is_asked_for(arguments: list[str]) -> bool:
    """Whether these arguments of `python -m lofi` are the program's; all others name a script."""
    return bool(arguments) and arguments[0] in COMMANDS


def is_starting() -> bool:
    """Whether Python imports the package on its way to `python -m lofi average` and the like."""
    return (
        sys.argv[:1] == ["-m"]
        and sys.orig_argv[-len(sys.argv) :][:1] == ["lofi"]
        and (is_asked_for(sys.argv[1:]))
    )


def find() -> str | None:
    """The program that was installed with this package; else one that is on PATH."""
    try:
        files = metadata.files(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == "lofi" and os.access(path, os.X_OK) and path.is_file():
            return str(path.resolve())
    return shutil.which("lofi")


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
