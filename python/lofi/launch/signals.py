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
from lofi.rounds.board import job_board
from lofi.rounds.rounds import LEAST, Round


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
    trains, size = training.state(), here.topology.node_size
    board = job_board().part(f"stop/{here.node}")
    closed = Round(board, None, size, kind=LEAST).look()
    if state.told and closed is None:
        word = str(trains.updates + len(trains.optimizers))
        closed = Round(board, here.place, size, close_at=1, kind=LEAST).announce(word)
    if closed is not None and trains.updates >= closed.value:
        if here.place == 0:
            updates = trains.updates - 1
            say(f"SIGTERM: node {here.node} stops after {updates} optimizer steps, to average")
        state.stopped = True
        raise ToldToEnd(0)
