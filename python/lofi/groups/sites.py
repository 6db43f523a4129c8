# SPDX-License-Identifier: MIT
"""The places in a script, or in a library that it uses, from which collectives are called."""

import inspect
import os
import sys
from dataclasses import dataclass, field
from types import FrameType

import torch.distributed as dist

from lofi.job import events
from lofi.job.job import PerJob

_TORCH = os.path.dirname(os.path.abspath(dist.__file__))
_LOFI = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_RECURS = 3  # consecutive steps
_SMALL_BYTES = 4096  # a decision or a counter; a batch is larger


def call_site() -> str:
    """file:line of the innermost Python frame outside of torch.distributed and lofi."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = os.path.abspath(frame.f_code.co_filename)
        if not path.startswith((_TORCH, _LOFI)) and not frame.f_code.co_filename.startswith("<"):
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return "an unknown place"


def _is_in_broadcast_of_objects() -> bool:
    """A script that imported the function before lofi came calls torch's own, in which only the
    root has anything to send: it has to be real (see hooks/objects.py)."""
    frame: FrameType | None = sys._getframe(1)
    code = inspect.unwrap(dist.broadcast_object_list).__code__
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def is_listed(places: str) -> bool:
    """Whether the call comes from one of these places (LOFI_NODE_BROADCASTS): each is `all`, or a
    part of a path that begins and ends at a separator: `train.py`, `train.py:120`, `lightning`."""
    if not places or _is_in_broadcast_of_objects():
        return False
    words = [place.strip().strip("/") for place in places.split(",")]
    site = f"/{call_site().lstrip('/')}/".replace(":", "/")
    return any(word == "all" or (word and f"/{word.replace(':', '/')}/" in site) for word in words)


@dataclass
class _Steps:
    now: int = 0  # steps so far
    # By place: the last step in which it was called, and in how many consecutive ones it was.
    calls: dict[str, tuple[int, int]] = field(default_factory=dict)


_steps = PerJob(_Steps)


def _step(count: int) -> None:
    _steps().now = count


events.backward_synchronised.subscribe(_step)


def recurs(site: str, size: int) -> bool:
    """Note a call of `size` bytes. True once for each place that has made small calls in several
    consecutive steps."""
    steps = _steps()
    last, count = steps.calls.get(site, (-1, 0))
    if size > _SMALL_BYTES or steps.now == last:
        return False
    count = count + 1 if steps.now == last + 1 else 1
    steps.calls[site] = (steps.now, count)
    return count == _RECURS
