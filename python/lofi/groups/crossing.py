# SPDX-License-Identifier: MIT
"""Collectives of the user that cross nodes while these train apart.

A broadcast, or a scatter, of the script's own can't be mirrored: its data exists on one rank only.
It runs for real, and all nodes must come to it. Nodes that have drifted apart (one stopped early)
would hang in it or, worse, pair it with another one; so before each, every rank compares a tag with
its images in the other nodes, in a round through the store: a few messages, however many nodes.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from lofi.groups import sites
from lofi.job import job
from lofi.job.job import PerJob
from lofi.job.log import log, tell
from lofi.rounds.board import StoreBoard
from lofi.rounds.rounds import DIFFERS, Closed, Round

_MOST_GATHERS = 1000  # a gather of each step has shown by then

# Some libraries broadcast by design; for these the warning names the setting that stops it.
_HOW_TO_AVOID = {
    "accelerate": ". Rank 0 reads the batches for all ranks here (a streamed dataset): "
    "--accelerator_config '{\"dispatch_batches\": false}' lets each rank read its own"
}


@dataclass
class _Gathers:
    noted: int = 0


_gathers = PerJob(_Gathers)


def watch_gather() -> bool:
    """Note a mirrored gather of features; say once what a loss over them sees. False: enough."""
    site, gathers = sites.call_site(), _gathers()
    gathers.noted += 1
    if not sites.recurs(f"all_gather at {site}"):
        return gathers.noted < _MOST_GATHERS
    nodes = job.current().topology.node_count
    place = os.path.basename(site).partition(":")[0]
    tell(
        "warn",
        f"all_gather at {site} comes in every step, and gives each node its own features {nodes} "
        "times, in place of other nodes'. A contrastive loss counts each negative as often, and "
        f"some take copies of a sample for its negatives. LOFI_NODE_CALLS={place} lets the code "
        "there see its node as the world (docs/contrastive.md)",
    )
    return False


class Checker:
    """Compares tags among the nodes of one group: the rank at each place with its images."""

    def __init__(self, group: Any, store: Any):
        self.group = group
        self.board = StoreBoard(store).part("tags")
        self.round: Round | None = None  # the last one
        self.count = 0  # of rounds
        self.has_withdrawn = False  # from the round that is next
        self.warned: set[str] = set()

    def check(self, collective: str, size: int) -> None:
        """Raise unless the other nodes issue the same collective from the same place now. `size`
        is in bytes."""
        site = sites.call_site()
        library = next((name for name in _HOW_TO_AVOID if f"/{name}/" in site), "")
        level = "warn" if self.group.rank == 0 else "info"  # once a group, not from each rank
        if (library or site) not in self.warned:
            self.warned.add(library or site)
            log(
                level,
                f"{collective} at {site} crosses nodes while they train apart: it runs for real "
                "and every node waits for it. LOFI_STRICT=1 refuses such calls; "
                'with lofi.scope("world"): says that it is meant' + _HOW_TO_AVOID.get(library, ""),
            )
        may_stay = collective == "broadcast" and not library and sites.is_small(size)
        if may_stay and sites.recurs(f"{collective} at {site}"):
            log(
                level,
                f"{collective} at {site} comes in every step, so that nodes wait for each other "
                "in every step. If it only keeps ranks alike or tells them of a decision, "
                f"LOFI_NODE_CALLS={os.path.basename(site)} keeps it inside each node, which that "
                "line then sees as the world",
            )
        # Machines may have the script at different paths, so only the file's name is compared.
        self.compare(f"{collective} at {os.path.basename(site)}")

    def announce(self, tag: str) -> None:
        """Say where this rank is, for its images, which may be comparing; wait for nobody."""
        self._next().announce(tag)

    def withdraw(self) -> None:
        """Take back the last announcement, because this rank did not go on from there. If the round
        is closed all the same, with the old word, the next comparison notices and goes on to the
        next round, where the others are by then."""
        if self.round is not None and self.round.look() is None:
            self.round.withdraw()
            self.count -= 1
            self.has_withdrawn = True

    def _next(self) -> Round:
        self.count += 1
        group = self.group
        place, node = group.place(group.rank), group.node_of(group.rank)
        board = self.board.part(f"{self.count}/{place}")
        self.round = Round(board, node, group.node_count, kind=DIFFERS)
        return self.round

    def _is_of_before(self, meeting: Round, closed: Closed, tag: str) -> bool:
        """Whether a round was closed with the word that this rank took back: all words were equal
        then, and the others' are not the tag of now."""
        others = [member for member in closed.members if member != meeting.member]
        is_in = meeting.member in closed.members and closed.value < 0 and len(others) > 0
        return is_in and meeting.word_of(others[0]) != tag

    def compare(self, tag: str) -> None:
        """Raise unless this rank's images announce the same tag."""
        limit = job.current().settings.timeout
        nodes = [self.group.node_number(index) for index in range(self.group.node_count)]
        what = f"{tag} waits for other nodes"
        has_withdrawn, self.has_withdrawn = self.has_withdrawn, False
        meeting = self._next()
        closed = meeting.meet(limit, what, word=tag)
        if has_withdrawn and self._is_of_before(meeting, closed, tag):
            meeting = self._next()
            closed = meeting.meet(limit, what, word=tag)
        if closed.value >= 0:
            first = closed.members[0]
            other = closed.value if meeting.word_of(first) == tag else first
            raise RuntimeError(
                f"lofi: nodes have drifted apart: node {job.current().node} is at {tag}, "
                f"node {nodes[other]} at {meeting.word_of(other)}. While nodes train apart, every "
                "node must reach an exchange that crosses nodes the same number of times; skip it "
                "on all nodes, or average first (lofi.finalize_average)"
            )
        late = f"lofi: {tag}: Timed out waiting:"
        if meeting.member in closed.missing:
            raise dist.DistBackendError(
                f"{late} this node came to it after the others had given up waiting "
                f"({limit:g} s, LOFI_TIMEOUT)"
            )
        if closed.missing:
            raise dist.DistBackendError(
                f"{late} node {nodes[closed.missing[0]]} did not come to it within {limit:g} s "
                "(LOFI_TIMEOUT). It may have stopped early or failed; its own log says more"
            )
