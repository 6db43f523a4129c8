# SPDX-License-Identifier: MIT
"""Rounds: members announce themselves on a board, it is closed once, and all learn who is in.

No collective of a job begins before a round has said that all are there to end it. liblofi decides
(lofi/round.h); here its steps are taken on the board.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lofi.job.log import tell
from lofi.job.native import _C

if TYPE_CHECKING:
    from lofi.rounds.board import Board

LEAST, DIFFERS, NOTHING = _C.ROUND_LEAST, _C.ROUND_DIFFERS, _C.ROUND_NOTHING

_FIRST_POLL = 0.005  # somebody may be known by then
_POLL = 5.0  # seconds after which a member that waits asks whether somebody is known not to come
_QUIET_SECONDS = 30.0  # after which a member that waits says whom it waits for
_VERDICT = "verdict"
_FIRST = "first"  # the first word of all


@dataclass(frozen=True)
class Closed:
    """A round that is closed."""

    members: list[int]  # who is in
    missing: list[int]  # who is not
    value: int  # of the words of those who are in: see Round


class Round:
    """One round of `member_count` members, on a board of its own.

    member    the number of this one; None: it looks on, and announces nothing.
    close_at  as many announcements close the round at once; 0: all.
    kind      of the value: LEAST, the smallest of the whole numbers that were announced; DIFFERS,
              the first member whose word is not the lowest member's, or -1, and words that differ
              close the round at once; NOTHING, 0.
    """

    def __init__(
        self,
        board: "Board",
        member: int | None,
        member_count: int,
        close_at: int = 0,
        kind: int = NOTHING,
    ) -> None:
        self.board, self.member, self.count = board, member, member_count
        self._round = _C.Round(member_count, -1 if member is None else member, close_at, kind)
        self._close_at = close_at or member_count

    def meet(
        self,
        seconds: float,
        what: str,
        word: str = "here",
        stop: Callable[[], bool] | None = None,
        poll: float = _POLL,
    ) -> Closed:
        """Announce this member, and wait until the round is closed: by the last one to come, or by
        the first whose time is up, or that learns from `stop()`, asked every `poll` seconds, that
        somebody will not come. `what` says in the log who waits for whom."""
        self._go(word, lambda: self._wait(seconds, what, stop, poll))
        return self._closed()

    def announce(self, word: str) -> Closed | None:
        """Announce this member, and wait for nobody; the outcome if that closes the round."""
        self._go(word, None)
        return self.look()

    def look(self) -> Closed | None:
        """The outcome, if the round is closed by now."""
        if self._round.next == _C.ROUND_WAIT and self.board.has_all([_VERDICT]):
            self._round.tell(yes=True)
        if self._round.next == _C.ROUND_READ:
            self._round.tell(verdict=self.board.get(_VERDICT))
        return self._closed() if self._round.next == _C.ROUND_CLOSED else None

    def withdraw(self) -> None:
        """Take back an announcement: a member that lists the others from now on finds that this one
        has not come, and a round that was not closed waits for it again. Another that has listed it
        before may still close the round with it, and after the closing this changes nothing: so a
        member that comes back has to ask whether its old word was counted."""
        self.board.remove(str(self.member))

    def word_of(self, member: int) -> str:
        return self.board.get(str(member)) or ""

    # -- the steps ----------------------------------------------------------------------------

    def _go(self, word: str, wait: Callable[[], bool] | None) -> None:
        """Take steps until the round is closed, or, without `wait`, until one has to wait."""
        board, steps = self.board, self._round
        while (step := steps.next) != _C.ROUND_CLOSED:
            if step == _C.ROUND_ANNOUNCE:
                board.put(str(self.member), word)
                steps.tell()
            elif step == _C.ROUND_COMPARE:
                steps.tell(yes=board.put_once(_FIRST, word) != word)
            elif step == _C.ROUND_LOOK:
                steps.tell(yes=self._are_enough())
            elif step == _C.ROUND_WAIT:
                if wait is None:
                    return
                steps.tell(yes=wait())
            elif step == _C.ROUND_LIST:
                steps.tell(words=board.get_all([str(member) for member in range(self.count)]))
            elif step == _C.ROUND_CLOSE:
                steps.tell(verdict=board.put_once(_VERDICT, steps.verdict))
            else:
                steps.tell(verdict=board.get(_VERDICT))

    def _are_enough(self) -> bool:
        names = [str(member) for member in range(self.count)]
        if self._close_at == self.count:
            return self.board.has_all(names)
        return self._close_at == 1 or sum(map(self._has, names)) >= self._close_at

    def _has(self, name: str) -> bool:
        return self.board.has_all([name])

    def _wait(
        self, seconds: float, what: str, stop: Callable[[], bool] | None, poll: float
    ) -> bool:
        begin = told = time.monotonic()
        pause = _FIRST_POLL
        while True:
            left = seconds - (time.monotonic() - begin)
            if self.board.wait(_VERDICT, min(pause, poll, left)):
                return True
            if left <= 0 or (stop is not None and stop()):
                return False
            pause *= 2
            if time.monotonic() - told > _QUIET_SECONDS:
                told = time.monotonic()
                tell("warn", f"{what} ({told - begin:.0f} s of {seconds:g})", of="node")

    def _closed(self) -> Closed:
        members = self._round.members
        missing = [member for member in range(self.count) if member not in set(members)]
        return Closed(members, missing, self._round.value)
