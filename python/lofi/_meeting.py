# SPDX-License-Identifier: MIT
"""Waiting for other ranks by the store, so that no collective begins that can't end."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lofi._log import log

_POLL = timedelta(seconds=5)
_POLL_IF_STOPPABLE = timedelta(seconds=0.5)
_QUIET_SECONDS = 30.0  # after which a waiting rank says whom it waits for
_ALL_HERE = "all here"


def meet(
    store: Any,
    me: str,
    everybody: list[str],
    seconds: float,
    what: str,
    stop: Callable[[], bool] | None = None,
) -> list[str]:
    """Wait until everybody is at this store's meeting; who is missing, [] if all are here.

    One word decides for all: the last to come writes that all are here, or the first to give up
    (when the time is over, or as soon as `stop()` says so) writes whom it missed. So all get the
    same answer, whenever they come. `what` says in the log who waits for whom.
    """
    store.set(me, b"here")
    if store.check(["verdict"]):
        return _missing(store.get("verdict"))
    if store.check(everybody):
        return _missing(store.compare_set("verdict", "", _ALL_HERE))
    if wait_for(store, ["verdict"], seconds, what, stop):
        return _missing(store.get("verdict"))
    late = [name for name in everybody if not store.check([name])]
    return _missing(store.compare_set("verdict", "", " ".join(late) or _ALL_HERE))


def post(store: Any, node: int, place: str) -> None:
    """Say where a node is: at the evaluation after so many steps, at the "end", or "failed"."""
    store.set(f"lofi/at/{node}", place)


def place_of(store: Any, node: int) -> str:
    """What was posted last of a node; "" if nothing."""
    key = f"lofi/at/{node}"
    return store.get(key).decode() if store.check([key]) else ""


def any_failed(store: Any, nodes: int) -> bool:
    return any(place_of(store, node) == "failed" for node in range(nodes))


def _missing(verdict: bytes) -> list[str]:
    text = verdict.decode()
    return [] if text == _ALL_HERE else text.split()


def wait_for(
    store: Any,
    keys: list[str],
    seconds: float,
    what: str,
    stop: Callable[[], bool] | None = None,
) -> bool:
    """Wait until all keys exist; False when the time is up, or `stop()` says that they won't come.
    Says whom it waits for now and then."""
    begin = time.monotonic()
    told = begin
    poll = _POLL_IF_STOPPABLE if stop else _POLL
    while True:
        left = seconds - (time.monotonic() - begin)
        try:
            store.wait(keys, min(poll, timedelta(seconds=max(left, 0.001))))
            return True
        except dist.DistStoreError:
            if left <= 0 or (stop is not None and stop()):
                return False
        if time.monotonic() - told > _QUIET_SECONDS:
            told = time.monotonic()
            log("warn", f"{what} ({told - begin:.0f} s of {seconds:g})")
