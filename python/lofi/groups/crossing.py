# SPDX-License-Identifier: MIT
"""Collectives of the user that cross nodes while these train apart.

A broadcast, or a scatter, of the script's own can't be mirrored: its data exists on one rank only.
It runs for real, and all nodes must come to it. Nodes that have drifted apart (one stopped early)
would hang in it or, worse, pair it with another one; so before each, every rank compares a tag with
its images in the other nodes, through the store: one set and K - 1 gets.
"""

import os
import sys
from types import FrameType
from typing import Any

import torch.distributed as dist

from lofi.job import job
from lofi.job.log import log
from lofi.rounds.rounds import wait_for

_TORCH = os.path.dirname(os.path.abspath(dist.__file__))
_LOFI = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Libraries that do so by nature, and their setting against it.
_HOW_TO_AVOID = {
    "accelerate": ". Rank 0 reads the batches for all ranks here (a streamed dataset): "
    "--accelerator_config '{\"dispatch_batches\": false}' lets each rank read its own"
}


def call_site() -> str:
    """file:line of the innermost Python frame outside of torch.distributed and lofi."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = os.path.abspath(frame.f_code.co_filename)
        if not path.startswith((_TORCH, _LOFI)) and not frame.f_code.co_filename.startswith("<"):
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return "an unknown place"


class Checker:
    """Compares tags among the members of one group."""

    def __init__(self, group: Any, store: Any):
        self.group = group
        self.store = dist.PrefixStore("lofi/tags", store)
        self.count = 0
        self.warned: set[str] = set()

    def check(self, collective: str) -> None:
        """Raise unless the other nodes issue the same collective from the same place now."""
        site = call_site()
        library = next((name for name in _HOW_TO_AVOID if f"/{name}/" in site), "")
        if (library or site) not in self.warned:
            self.warned.add(library or site)
            log(
                "warn",
                f"{collective} at {site} crosses nodes while they train apart: it runs for real "
                "and every node waits for it. LOFI_STRICT=1 refuses such calls; "
                'with lofi.scope("world"): says that it is meant' + _HOW_TO_AVOID.get(library, ""),
            )
        # Paths may differ between machines; the file's name and the line do not.
        self.compare(f"{collective} at {os.path.basename(site)}")

    def announce(self, tag: str) -> None:
        """Say where this rank is, for ranks that will compare; wait for nobody."""
        self.count += 1
        self.store.set(f"{self.count}/{self.group.rank}", tag)

    def withdraw(self) -> None:
        """Take back what was announced last: this rank did not go on from there."""
        self.store.delete_key(f"{self.count}/{self.group.rank}")
        self.count -= 1

    def compare(self, tag: str) -> None:
        self.announce(tag)
        group = self.group
        mine = group.node_of(group.rank)
        for index in range(group.node_count):
            if index == mine:
                continue
            node = group.node_number(index)
            image = group.member(index, group.place(group.rank))
            other = self._get(f"{self.count}/{image}", tag, node)
            if other != tag:
                raise RuntimeError(
                    f"lofi: nodes have drifted apart: node {job.current().node} is at {tag}, "
                    f"node {node} at {other}. While nodes train apart, every node must reach an "
                    "exchange that crosses nodes the same number of times; skip it on all nodes, "
                    "or average first (lofi.finalize_average)"
                )

    def _get(self, key: str, tag: str, node: int) -> str:
        limit = job.current().settings.timeout
        if not wait_for(self.store, [key], limit, f"{tag} waits for node {node}"):
            raise dist.DistBackendError(
                f"lofi: {tag}: node {node} did not come to it within {limit:g} s (LOFI_TIMEOUT). "
                "It may have stopped early or failed; its own log says more"
            )
        return self.store.get(key).decode()
