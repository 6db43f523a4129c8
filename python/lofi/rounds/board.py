# SPDX-License-Identifier: MIT
"""Boards: places where the members of a job leave words for each other."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch.distributed as dist

from lofi.job import job

_NO_WORD = "\0"  # it stands for the absence of a word, since no member announces it
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.02  # between two looks of a wait, in seconds


class Board(Protocol):
    """Words under names, which every member of the job can read.

    A new kind of board has to keep four promises, and rounds rely on no more (lofi/round.h): a word
    is written as a whole; `put_once` looks and writes in one step; `get` finds a word, or none, in
    one step, and does not wait for one; and what a call wrote or took away is seen by every call
    that begins after it, of any process. The calls on several names need not be one step: they may
    be made of `get`. Any call may raise what its storage raises when it can't be reached.
    """

    def put(self, name: str, word: str) -> None:
        """Write a word, in place of one that is there."""

    def put_once(self, name: str, word: str) -> str:
        """Write a word unless one is there; the word that is there then. Of several processes at
        the same time one writes, and all get its word."""

    def get(self, name: str) -> str | None:
        """The word, or None if there is none."""

    def get_all(self, names: Sequence[str]) -> list[str | None]:
        """The word, or None, under each of these names. They may be read one after another."""

    def has_all(self, names: Iterable[str]) -> bool:
        """Whether there is a word under each of these names. They may be asked for one after
        another."""

    def wait(self, name: str, seconds: float) -> bool:
        """Wait for a word under a name; False if there is none after this time."""

    def remove(self, name: str) -> None:
        """Take a word away, if one is there."""

    def part(self, prefix: str) -> "Board":
        """A board of its own within this one."""


def _text(word: bytes) -> str:
    """A foreign word may be no text; whoever reads it then finds that it is none of a round's."""
    return word.decode(errors="replace")


class StoreBoard:
    """A board in a store of torch.distributed.

    The store's own `get` waits for a word that is not there, also for one that was taken back a
    moment ago. Its exchange of one word for another never waits, and changes nothing where the word
    that is expected is not the one that is there.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def put(self, name: str, word: str) -> None:
        self._store.set(name, word)

    def put_once(self, name: str, word: str) -> str:
        return _text(self._store.compare_set(name, "", word))

    def get(self, name: str) -> str | None:
        word = _text(self._store.compare_set(name, _NO_WORD, _NO_WORD))
        return None if word == _NO_WORD else word

    def get_all(self, names: Sequence[str]) -> list[str | None]:
        # The usual case takes two messages: all words are there. If one is taken back in between,
        # multi_get waits for it for a while, and ends with an error.
        if self._store.has_extended_api() and self._store.check(list(names)):
            try:
                return [_text(word) for word in self._store.multi_get(list(names))]
            except dist.DistStoreError:
                pass
        return [self.get(name) for name in names]

    def has_all(self, names: Iterable[str]) -> bool:
        return self._store.check(list(names))

    def wait(self, name: str, seconds: float) -> bool:
        # The store could wake a waiting rank, but whoever waits also wants to look at other words
        # now and then, and each wait of torch's that ends without a word prints two lines on the
        # terminal. So it looks, ever less often: all ranks together some 50,000 times a second.
        end, pause = time.monotonic() + seconds, _SHORTEST_PAUSE
        topology = job.current().topology
        longest = max(_LONGEST_PAUSE, topology.world_size / 50_000 if topology else 0.0)
        while not self._store.check([name]):
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(2 * pause, longest)
        return True

    def remove(self, name: str) -> None:
        self._store.delete_key(name)

    def part(self, prefix: str) -> "StoreBoard":
        return StoreBoard(dist.PrefixStore(prefix, self._store))


def job_board() -> Board:
    """The board of this job, in the store that its default group was made with."""
    return StoreBoard(job.current().store)
