# SPDX-License-Identifier: MIT
"""Phases and scopes: what a collective means now, and what has been counted."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from lofi.job import job
from lofi.job.native import _C


def phase() -> str:
    """'setup', 'train', 'average' or 'done'. While training, collectives stay inside the node."""
    job.require()
    return _C.phase()


def start() -> None:
    """Training begins: from here on, nodes train apart.

    The first forward with gradients of a DDP or FSDP model calls this; a script needs it only to
    begin earlier, or where it wraps nothing. Not collective. RuntimeError before
    init_process_group.
    """
    job.require()
    _C.event(_C.EVENT_TRAIN)


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Collectives inside the block are real ("world") or mirrored inside the node ("node").

    `with lofi.scope("world"):` is for what a script must exchange between nodes while they train;
    all nodes must come to it. The scope is that of the process: enter it on the thread that drives
    training. ValueError for another name; RuntimeError before init_process_group.
    """
    job.require()
    scopes = {"world": _C.SCOPE_WORLD, "node": _C.SCOPE_NODE}
    if name not in scopes:
        raise ValueError(f'lofi.scope takes "world" or "node", not {name!r}')
    _C.push_scope(scopes[name])
    try:
        yield
    finally:
        _C.pop_scope()


@contextmanager
def by_wrapper() -> Iterator[None]:
    """Collectives of this thread inside the block are a wrapper's own: they keep replicas equal,
    and belong into the node, from the root's image, also in an evaluation of the average."""
    within = scope("node") if _C.phase() == "evaluate" else nullcontext()
    former = _C.set_issuer(_C.BY_WRAPPER)
    try:
        with within:
            yield
    finally:
        _C.set_issuer(former)


@contextmanager
def as_setup() -> Iterator[None]:
    """Collectives of this thread inside the block are real, and counted as those of the setup: all
    nodes start a new model from the same weights, whatever trains already."""
    former = _C.set_purpose(_C.FOR_SETUP)
    try:
        with scope("world"):
            yield
    finally:
        _C.set_purpose(former)


def stats() -> dict[str, Any]:
    """Counts of what this rank has done so far.

    phase           the phase now
    nodes, node     how many nodes there are, and which is ours
    collectives     {"world": {...}, "node": {...}}: how many, by scope and purpose ("setup",
                    "training", "evaluation", "average", "bypass", "done")
    cross_bytes     payload bytes that this rank sent to other nodes, by purpose: what any
                    algorithm must send at least, without headers. "training" is 0 unless the
                    script asked for an exchange.

    "bypass" counts collectives on groups that span nodes and are not lofi's. RuntimeError before
    init_process_group.
    """
    here = job.require()
    return {**_C.stats(), "nodes": here.topology.node_count, "node": here.node}
