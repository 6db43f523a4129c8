# SPDX-License-Identifier: MIT
"""LOFI_ON_SIGTERM=average: a job that is told to end (Slurm, a spot instance) averages first.

The signal comes to the ranks of a node at different moments, and a rank that left a step in which
others wait would hang them. So the first rank that has it says in the store before which optimizer
step the node stops: one step of each optimizer from now. Before that the ranks synchronise
gradients at least once, so that no other rank can get there without the word.
"""

import signal
from typing import Any

from lofi.job import job
from lofi.job.log import say


class ToldToEnd(SystemExit):
    """Raised in the script where its next optimizer step would have been."""


_told = False
stopped = False  # ToldToEnd was raised: the script had no time to save


def watch() -> None:
    """From here on SIGTERM is noted, and acted on at the next step."""
    signal.signal(signal.SIGTERM, _note)


def _note(signum: int, frame: Any) -> None:
    global _told
    _told = True


def is_watching() -> bool:
    return signal.getsignal(signal.SIGTERM) is _note


def before_update() -> None:
    """An optimizer is about to step. Raises ToldToEnd on every rank of the node before the same
    one; its gradients are not applied."""
    global stopped
    here = job.current()
    key = f"lofi/stop/{here.node}"
    if _told and not here.store.check([key]):
        here.store.compare_set(key, "", str(here.updates + len(here.optimizers)))
    if here.store.check([key]) and here.updates >= int(here.store.get(key)):
        if here.rank % here.topology.node_size == 0:
            updates = here.updates - 1
            say(f"SIGTERM: node {here.node} stops after {updates} optimizer steps, to average")
        stopped = True
        raise ToldToEnd(0)
