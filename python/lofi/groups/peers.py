# SPDX-License-Identifier: MIT
"""The ranks that carry out an exchange together, for any of the nodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lofi.groups import lookup
from lofi.job import job
from lofi.job.job import PerJob


@dataclass(frozen=True)
class Peers:
    """The members of an exchange, as this rank sees them."""

    nodes: tuple[int, ...]  # their numbers, ascending
    node: int  # this rank's, as an index of `nodes`
    node_size: int
    place: int
    inner: Callable[[str, str], Any]  # a device type and "node" or "column" give the inner backend


@dataclass
class _Columns:
    """The columns that were made for an attempt; those of the one before are let go of."""

    key: tuple[tuple[int, ...], int] = ((), 0)
    made: dict[str, Any] = field(default_factory=dict)  # by device type


_columns = PerJob(_Columns)


def peers_of(nodes: Sequence[int] | None = None, attempt: int = 0) -> Peers:
    """The peers of this rank among `nodes` (None: all), of which its own is one.

    attempt  0 for the first try with these nodes. A collective that failed leaves the connections
             that it used in an unknown state, so that each further try, by its number, and each
             other set of nodes, has connections of its own.

    Every rank of these nodes that uses the peers gives the same nodes and attempt; others need not
    know. ValueError: this rank's node is not among them, or one does not exist.
    """
    here = job.require()
    topology = here.topology
    everyone = tuple(range(topology.node_count))
    chosen = everyone if nodes is None else tuple(sorted(nodes))
    if (
        here.node not in chosen
        or not set(chosen) <= set(everyone)
        or len(set(chosen)) < len(chosen)
    ):
        raise ValueError(
            f"lofi: an exchange of the nodes {list(chosen)} on a rank of node {here.node}: they "
            f"have to be of {list(everyone)}, each once, and this rank's one of them"
        )
    whole = world_backend(here)

    def inner(device: str, span: str) -> Any:
        if span != "column" or (chosen == everyone and attempt == 0):
            return whole.inner(device, span)
        return _column(here, whole.source, chosen, attempt, device)

    place = here.rank % topology.node_size
    return Peers(chosen, chosen.index(here.node), topology.node_size, place, inner)


def _column(here: job.Job, source: Any, nodes: tuple[int, ...], attempt: int, device: str) -> Any:
    columns = _columns()
    if columns.key != (nodes, attempt):
        columns.key, columns.made = (nodes, attempt), {}
    if device not in columns.made:
        size = here.topology.node_size
        place = here.rank % size
        ranks = [node * size + place for node in nodes]
        label = f"column{place}/of/{'.'.join(map(str, nodes))}/{attempt}"
        columns.made[device] = source.connect_ranks(device, "column", ranks, label)
    return columns.made[device]


def world_backend(here: job.Job) -> Any:
    """The lofi backend of the whole world."""
    backend = lookup.backend_of(None)
    if backend is None:
        raise RuntimeError(
            "lofi.finalize_average needs the default process group to be lofi's: "
            'init_process_group(backend="lofi")'
        )
    return backend
