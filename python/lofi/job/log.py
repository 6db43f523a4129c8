# SPDX-License-Identifier: MIT
"""lofi's log lines: one prefix, one level, from C as from Python."""

import sys
from typing import Any

from lofi.job.native import _C

_LEVELS = ("error", "warn", "info", "debug", "trace")


def log(level: str, line: str) -> None:
    """Write one line if LOFI_LOG is at `level` or beyond."""
    _C.log(_LEVELS.index(level), line)


# Whether this rank is the first of the job, and of its node.
_is_first = {"job": True, "node": True}


def set_first(of_job: bool, of_node: bool) -> None:
    _is_first.update(job=of_job, node=of_node)


def tell(level: str, line: str, of: str = "job") -> None:
    """Log a line that every rank of the job, or of the "node", has to say: once, from the first of
    them; from the others it is information."""
    log(level if _is_first[of] else "info", line)


def say(line: str) -> None:
    """Tell the user of the launcher what came of it, whatever the level of the log."""
    tqdm: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if getattr(tqdm, "_instances", None):  # a progress bar stands on the line
        tqdm.write(f"lofi: {line}", file=sys.stderr)
    else:
        # With its end in one piece, since other processes write to the same terminal.
        sys.stderr.write(f"lofi: {line}\n")
        sys.stderr.flush()
