# SPDX-License-Identifier: MIT
"""The places in a script, or in a library that it uses, from which collectives are called."""

import os
import sys
from dataclasses import dataclass, field
from types import FrameType

import torch.distributed as dist

from lofi.job import events
from lofi.job.job import PerJob

_TORCH = os.path.dirname(os.path.abspath(dist.__file__))
_LOFI = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_UNKNOWN = "an unknown place"

_RECURS = 3  # consecutive steps
_SMALL_BYTES = 4096  # a decision or a counter; a batch is larger


def call_site(frame: FrameType | None = None) -> str:
    """file:line of the innermost Python frame outside of torch.distributed and lofi, from `frame`
    outwards."""
    frame = frame or sys._getframe(1)
    while frame is not None:
        path = os.path.abspath(frame.f_code.co_filename)
        if not path.startswith((_TORCH, _LOFI)) and not frame.f_code.co_filename.startswith("<"):
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return _UNKNOWN


def direct_call_site(frame: FrameType | None) -> str:
    """The same, if torch.distributed was called from there and not by lofi."""
    while frame is not None:
        path = os.path.abspath(frame.f_code.co_filename)
        if path.startswith(_LOFI):
            break
        if not path.startswith(_TORCH):
            return call_site(frame)
        frame = frame.f_back
    return _UNKNOWN


def is_listed(site: str, places: str) -> bool:
    """Whether a call site is one of these places (LOFI_NODE_CALLS): each is a part of a path that
    begins and ends at a separator: `loss.py`, `train.py:120`, `lightning`; or `all`."""
    words = [place.strip().strip("/").replace(":", "/") for place in places.split(",")]
    path = f"/{site.lstrip('/')}/".replace(":", "/")
    return any(word == "all" or (word and f"/{word}/" in path) for word in words)


@dataclass
class _Steps:
    now: int = 0  # steps so far
    # By call: the last step in which it was made, and in how many consecutive ones it was.
    calls: dict[str, tuple[int, int]] = field(default_factory=dict)


_steps = PerJob(_Steps)


def _step(count: int) -> None:
    _steps().now = count


events.backward_synchronised.subscribe(_step)


def recurs(call: str) -> bool:
    """Note a call. True once for each that was made in several consecutive steps."""
    steps = _steps()
    last, count = steps.calls.get(call, (-1, 0))
    if steps.now == last:
        return False
    count = count + 1 if steps.now == last + 1 else 1
    steps.calls[call] = (steps.now, count)
    return count == _RECURS


def is_small(size: int) -> bool:
    return size <= _SMALL_BYTES
