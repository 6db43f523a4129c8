# SPDX-License-Identifier: MIT
"""Waiting for other ranks by the store, so that no collective begins that can't end."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lofi.job.log import log

_POLL = 5.0  # seconds after which a waiting rank looks whether it still should
_QUIET_SECONDS = 30.0  # after which a waiting rank says whom it waits for
_ALL_HERE = "all here"


def meet(
    store: Any,
    me: str,
    everybody: list[str],
    seconds: float,
    what: str,
    stop: Callable[[], bool] | None = None,
    poll: float = _POLL,
) -> list[str]:
    """Wait until everybody is at this store's meeting; who is missing, [] if all are here.

    One word decides for all: the last to come writes that all are here, or the first to give up
    (when the time is over, or as soon as `stop()` says so, asked every `poll` seconds) writes whom
    it missed. So all get the same answer, whenever they come. `what` says in the log who waits for
    whom.
    """
    store.set(me, b"here")
    if store.check(["verdict"]):
        return _missing(store.get("verdict"))
    if store.check(everybody):
        return _missing(store.compare_set("verdict", "", _ALL_HERE))
    if wait_for(store, ["verdict"], seconds, what, stop, poll):
        return _missing(store.get("verdict"))
    late = [name for name in everybody if not store.check([name])]
    return _missing(store.compare_set("verdict", "", " ".join(late) or _ALL_HERE))


def post(store: Any, node: int, place: str) -> None:
    """Say where a node is: after so many steps, or at the "end"."""
    store.set(f"lofi/at/{node}", place)


def post_failure(store: Any, node: int) -> None:
    store.set(f"lofi/failed/{node}", "")


def place_of(store: Any, node: int) -> str:
    """What was posted last of a node; "failed" for good; "" if nothing."""
    if store.check([f"lofi/failed/{node}"]):
        return "failed"
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
    poll: float = _POLL,
) -> bool:
    """Wait until all keys exist; False when the time is up, or `stop()` says that they won't come.
    Says whom it waits for now and then."""
    # store.wait, not a loop of looks at it: a rank that sleeps when the last word comes may find
    # the store gone with the process that held it; and waiting nodes send nothing.
    begin = time.monotonic()
    told = begin
    while True:
        left = seconds - (time.monotonic() - begin)
        try:
            store.wait(keys, timedelta(seconds=max(min(poll, left), 0.001)))
            return True
        except dist.DistStoreError:
            if left <= 0 or (stop is not None and stop()):
                return False
        if time.monotonic() - told > _QUIET_SECONDS:
            told = time.monotonic()
            log("warn", f"{what} ({told - begin:.0f} s of {seconds:g})")
