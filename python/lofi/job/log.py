# SPDX-License-Identifier: MIT
"""lofi's log lines: one prefix, one level, from C as from Python."""

import sys
from typing import Any

from lofi.job.native import _C

_LEVELS = ("error", "warn", "info", "debug", "trace")


def log(level: str, line: str) -> None:
    """Write one line if LOFI_LOG is at `level` or beyond."""
    _C.log(_LEVELS.index(level), line)


def say(line: str) -> None:
    """Tell the user of the launcher what came of it, whatever the level of the log."""
    tqdm: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if getattr(tqdm, "_instances", None):  # a progress bar stands on the line
        tqdm.write(f"lofi: {line}", file=sys.stderr)
    else:
        print(f"lofi: {line}", file=sys.stderr, flush=True)
