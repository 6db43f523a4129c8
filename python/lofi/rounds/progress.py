# SPDX-License-Identifier: MIT
"""The progress of nodes: the last word of each on how far it is, for those who wait for it."""

from collections.abc import Iterable

from lofi.job import job
from lofi.job.native import _C
from lofi.rounds.board import Board, job_board


class Progress:
    def __init__(self, board: Board, node_count: int) -> None:
        self._board, self._count = board.part("progress"), node_count

    def post(self, node: int, word: str) -> None:
        """How far a node is: a number of steps, or "end"."""
        self._board.put(str(node), word)

    def post_rank(self, rank: int, steps: int) -> None:
        """A rank begins this synchronised forward."""
        self._board.put(f"rank/{rank}", str(steps))

    def any_rank_past(self, ranks: Iterable[int], steps: int) -> bool:
        """Whether one of these ranks has gone beyond a step."""
        words = self._board.get_all([f"rank/{rank}" for rank in ranks])
        return any(_C.progress_is_past(word or "", steps) for word in words)

    def post_failure(self, node: int) -> None:
        self._board.put(f"failed/{node}", "")

    def has_failed(self, node: int) -> bool:
        return self._board.has_all([f"failed/{node}"])

    def any_failed(self) -> bool:
        return any(self.has_failed(node) for node in range(self._count))

    def any_past(self, steps: int, but: int) -> bool:
        """Whether a node other than `but` has gone beyond a step, or makes no more steps."""
        return any(
            self.has_failed(node) or _C.progress_is_past(self._board.get(str(node)) or "", steps)
            for node in range(self._count)
            if node != but
        )


def of_job() -> Progress:
    return Progress(job_board(), job.current().topology.node_count)
