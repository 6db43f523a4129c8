# SPDX-License-Identifier: MIT
"""LOFI_ON_SIGTERM=average: a job that is told to end (Slurm, a spot instance) averages first.

The signal comes to the ranks of a node at different moments, and a rank that left a step in which
others wait would hang them. So the first rank that has it says in the store before which optimizer
step the node stops: one step of each optimizer from now. Before that the ranks synchronise
gradients at least once, so that no other rank can get there without the word.
"""

import signal
import threading
from dataclasses import dataclass
from typing import Any

from lofi.job import events, job
from lofi.job.log import say
from lofi.models import training


class ToldToEnd(SystemExit):
    """Raised in the script where its next optimizer step would have been."""


@dataclass
class Signals:
    told: bool = False  # this process was told to end
    stopped: bool = False  # ToldToEnd was raised: the script had no time to save


state = Signals()


def install() -> None:
    events.begun.subscribe(_watch)
    events.step.subscribe(_before_step)


def _watch() -> None:
    """From here on SIGTERM is noted, and acted on at the next step."""
    is_main = threading.current_thread() is threading.main_thread()
    if job.current().settings.on_sigterm == "average" and is_main:
        signal.signal(signal.SIGTERM, _note)


def _note(signum: int, frame: Any) -> None:
    state.told = True


def _before_step(optimizer: Any) -> None:
    """Raises ToldToEnd on every rank of the node before the same step of an optimizer; its
    gradients are not applied."""
    if signal.getsignal(signal.SIGTERM) is not _note:
        return
    here = job.current()
    key = f"lofi/stop/{here.node}"
    if state.told and not here.store.check([key]):
        here.store.compare_set(
            key, "", str(training.state().updates + len(training.state().optimizers))
        )
    if here.store.check([key]) and training.state().updates >= int(here.store.get(key)):
        if here.rank % here.topology.node_size == 0:
            updates = training.state().updates - 1
            say(f"SIGTERM: node {here.node} stops after {updates} optimizer steps, to average")
        state.stopped = True
        raise ToldToEnd(0)
