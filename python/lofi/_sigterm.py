# SPDX-License-Identifier: MIT
"""LOFI_ON_SIGTERM=average: a job that is told to end (Slurm, a spot instance) averages first.

The signal comes to the ranks of a node at different moments, and a rank that left a step in which
others wait would hang them. So the first rank that has it says in the store before which forward
the node stops: the next one. No other rank can get there before it has this one's gradients of the
present one, and with them the word.
"""

import signal
from typing import Any

from lofi import _world
from lofi._log import say


class ToldToEnd(SystemExit):
    """Raised in the script where its next step would have begun."""


_told = False


def watch() -> None:
    """From here on SIGTERM is noted, and acted on at the next step."""
    signal.signal(signal.SIGTERM, _note)


def _note(signum: int, frame: Any) -> None:
    global _told
    _told = True


def is_watching() -> bool:
    return signal.getsignal(signal.SIGTERM) is _note


def before_step() -> None:
    """A synchronised forward with gradients is about to run. Raises ToldToEnd on every rank of the
    node before the same one."""
    world = _world.current()
    key = f"lofi/stop/{world.node}"
    if _told and not world.store.check([key]):
        world.store.compare_set(key, "", str(world.steps + 1))
    if world.store.check([key]) and world.steps >= int(world.store.get(key)):
        if world.rank % world.topology.node_size == 0:
            say(f"SIGTERM: node {world.node} stops after {world.steps - 1} steps, to average")
        raise ToldToEnd(0)
