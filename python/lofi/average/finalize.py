# SPDX-License-Identifier: MIT
"""The nodes' average of a target: for good (finalize_average), or for a while (averaged)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist

from lofi.average import agree, exchange, swaps
from lofi.average.changes import Result
from lofi.average.swaps import Swap
from lofi.groups import lookup
from lofi.job import events, job
from lofi.job.job import PerJob
from lofi.job.log import log
from lofi.job.native import _C
from lofi.models import training
from lofi.models.items import Item, collect, unwrap
from lofi.rounds import progress
from lofi.rounds.board import job_board
from lofi.rounds.rounds import Round


@dataclass(frozen=True)
class Average:
    """The nodes and tensors that an average was taken of, and what it cost."""

    nodes: list[int]  # that are in it
    missing: list[int]  # that are not: they did not come, or their weights were not finite
    bytes_sent: int  # payload that this rank's node sent to other nodes
    seconds: float
    tensors: int  # distinct tensors of the target
    averaged: int  # of them, those that differed between nodes
    weights: list[float] = field(default_factory=list)  # of the nodes that are in it


def finalize_average(
    target: Any,
    *,
    weight: float = 1.0,
    timeout: float | None = None,
    scratch_bytes: int = exchange.SCRATCH_BYTES,
) -> Average:
    """Replace the tensors of `target` by their mean over the nodes, in place, on every rank.

    target   a module (DDP, FSDP2 as HSDP, or bare: parameters and buffers), a state dict, tensors,
             or a list of these. An optimizer means its state; it is averaged only if asked for.
    weight   of this node: steps taken or samples seen, say; the same on all its ranks, > 0.
    timeout  seconds to wait for the other nodes; LOFI_TIMEOUT otherwise.
    scratch_bytes  of GPU memory that the average of tensors on a GPU may use, at least 1 MiB; what
             NCCL takes to connect the nodes is not in it (see release_communicators). On the host
             it takes one copy of the tensors that differ. The same on every rank.

    Collective: every rank of every node calls it with the same kind of target. Floating point is
    ((w0*x0 + w1*x1) + ...) / sum(w) in float64, in node order, rounded once to the dtype;
    integers and booleans become the first node's; tensors equal in all nodes are kept as they
    are and not sent. A buffer that differs between the ranks of a node counts as its first rank's.

    Nothing is overwritten until all of the average has arrived everywhere: an exception leaves
    this node's own weights. ValueError: the nodes' layouts or first weights differ (names the first
    tensor and both nodes), or a weight is wrong. DistBackendError: a node did not come in time.
    RuntimeError: no process group, a transfer failed, or it was called within lofi.averaged().
    """
    begun = time.monotonic()
    if swaps.any_in():
        raise RuntimeError(
            "lofi.finalize_average within lofi.averaged(): the average is in already, and the "
            "node's own weights come back at the end of the block. Leave the block first"
        )
    with _taken("finalize_average", target, weight, timeout, scratch_bytes) as (
        result,
        swap,
        items,
    ):
        with torch.inference_mode(False), torch.no_grad():
            if swap is not None:  # taken before, and nothing was trained since
                swap.put_in()
            else:
                for change in result.changes:
                    change.write()
        swaps.forget(target)
        _C.event(_C.EVENT_AVERAGE_DONE)
    return _told(begun, items, result)


@contextmanager
def averaged(
    target: Any,
    *,
    keep: str = "host",
    weight: float = 1.0,
    timeout: float | None = None,
    scratch_bytes: int = exchange.SCRATCH_BYTES,
) -> Iterator[Average]:
    """Within the block, `target` holds the nodes' average, and collectives are real.

        with lofi.averaged(model):
            accuracy = evaluate(model)  # of the model that finalize_average would give now

    Afterwards, also after an exception, this node's own weights are back (and buffers, and
    BatchNorm's counts), bit for bit, and training goes on as if nothing had been. Parameters that
    the block loaded with other values keep these: the load stands.

    target, weight, timeout, scratch_bytes, errors: as for finalize_average. Collective: every
    rank enters it.
    keep     "host" or "device": where the one extra copy of what differs is kept meanwhile. It
             stays until training goes on, so that a second average of the same weights is not
             transferred again.

    Blocks may be nested; an inner block for the same target changes nothing.
    """
    begun = time.monotonic()
    if keep not in ("host", "device"):
        raise ValueError(f'lofi.averaged(keep=) takes "host" or "device", not {keep!r}')
    within = swaps.find_in(target)
    if within is not None:  # nested
        yield _told(begun, within.items, within.result)
        return
    here = job.require()
    swap = put_in(target, keep, weight, timeout, scratch_bytes)
    try:
        yield _told(begun, swap.items, swap.result)
    finally:
        put_back(here, swap)


def put_in(
    target: Any,
    keep: str = "host",
    weight: float = 1.0,
    timeout: float | None = None,
    scratch_bytes: int = exchange.SCRATCH_BYTES,
) -> Swap:
    """The average of the target takes the place of the node's own weights."""
    with _taken("averaged", target, weight, timeout, scratch_bytes) as (result, swap, items):
        if swap is None:
            swap = Swap(target, items, result, weight, keep)
            swaps.remember(swap)
        swap.put_in()
        _C.event(_C.EVENT_EVALUATE)
    events.evaluation(target)
    return swap


def put_back(here: job.Job, swap: Swap) -> None:
    """The node's own weights again."""
    if here is not job.current():
        return  # the process group was destroyed within the block: there is nothing to go back to
    swap.put_back()
    if not swaps.any_in():
        _C.event(_C.EVENT_AVERAGE_BACK)


@contextmanager
def _taken(
    what: str, target: Any, weight: float, timeout: float | None, scratch_bytes: int
) -> Iterator[tuple[Result, Swap | None, list[Item]]]:
    """Take the average, or find the one that was taken of the same weights: phase "average"
    within the block, which leaves it by an event of its own; an exception goes back."""
    here = job.require()
    limit = here.settings.timeout if timeout is None else timeout
    if not 0 < limit < 1e9:
        raise ValueError(f"lofi.{what}: timeout={limit} is not a number of seconds > 0")
    if scratch_bytes < exchange.tuning.scratch_least:
        raise ValueError(f"lofi.{what}: scratch_bytes={scratch_bytes} is less than 1 MiB")
    with torch.inference_mode(False):
        items = collect(target)
        if not here.spans_nodes:
            _C.round_members([(True, -1, float(weight))], 1)  # refuses a bad weight
        else:
            meet(here, what, limit)
        is_within = _C.phase() == "evaluate"  # of another target
        _C.event(_C.EVENT_AVERAGE)
        try:
            if not here.spans_nodes:
                yield Result([0], [float(weight)], 0, 0, []), None, items
                return
            first = _first_digests(here, target)
            number = _count().taken
            run = agree.Run(here, number, items, float(weight), first, scratch_bytes)
            swap = swaps.find_ready(target)
            same = run.all_say(swap is not None and swap.weight == weight)
            if same and swap is not None:
                swap.result = replace(swap.result, bytes_sent=run.sent(), changes=[])
                yield swap.result, swap, items
            else:
                swaps.forget(target)  # before the memory for another one is taken
                yield run.average(), None, items
        except BaseException:
            _C.event(_C.EVENT_EVALUATE if is_within else _C.EVENT_AVERAGE_BACK)
            raise


@dataclass
class _Count:
    taken: int = 0  # averages that have been asked for: it numbers their keys in the store


_count = PerJob(_Count)


def _told(begun: float, items: list[Item], result: Result) -> Average:
    nodes = job.current().topology.node_count
    average = Average(
        nodes=result.nodes,
        missing=[node for node in range(nodes) if node not in result.nodes],
        bytes_sent=result.bytes_sent,
        seconds=time.monotonic() - begun,
        tensors=len(items),
        averaged=result.averaged,
        weights=result.weights,
    )
    log("debug", f"average of nodes {average.nodes} in {average.seconds:.2f} s")
    return average


def _first_digests(here: job.Job, target: Any) -> dict[str, bytes]:
    """The fingerprints of the weights that training began with, where lofi saw it begin."""
    if isinstance(target, torch.nn.Module):
        for model, digests in training.state().models.items():
            if target is model or target is unwrap(model):
                return digests
    return {}


def meet(here: job.Job, what: str, limit: float) -> None:
    """Wait until every rank is here; DistBackendError if not.

    Who comes too late goes to the next meeting, where those who waited in vain find it when they
    call again.
    """
    # Another node may wait at a broadcast of its own: it learns at once that this one is past it.
    default = lookup.backend_of(None)
    if default is not None:
        default.source.checker.announce(what)
    size = here.topology.world_size
    at = progress.of_job()
    waits = f"node {here.node} waits at {what} for the other nodes"
    while True:
        _count().taken += 1
        try:
            board = job_board().part(f"average/{_count().taken}")
            closed = Round(board, here.rank, size).meet(limit, waits, stop=at.any_failed)
        except dist.DistNetworkError as error:
            raise dist.DistBackendError(
                f"lofi.{what}: the store of the job, which torchrun or rank 0 holds, can't be "
                "reached: has it ended? This node keeps its own weights"
            ) from error
        if not closed.missing:
            return
        if here.rank in closed.members:
            break
    if default is not None:
        default.source.checker.withdraw()
    raise dist.DistBackendError(
        f"lofi.{what}: {_absence(here, closed.missing, limit)}; "
        "this node keeps its own weights. Call it again when they are back, or give it a longer "
        "timeout="
    )


def _absence(here: job.Job, missing: list[int], limit: float) -> str:
    """Say which ranks did not come, by whole nodes where all of a node are missing, and why."""
    size = here.topology.node_size
    of_node: dict[int, list[int]] = {}
    for rank in sorted(missing):
        of_node.setdefault(rank // size, []).append(rank)
    whole = [node for node, ranks in of_node.items() if len(ranks) == size]
    parts = [f"node(s) {whole}"] if whole else []
    for node, ranks in of_node.items():
        if len(ranks) < size:
            where = "this node" if node == here.node else f"node {node}"
            parts.append(f"rank(s) {ranks} of {where}")
    late = " and ".join(parts)
    failed = [node for node in of_node if node != here.node and progress.of_job().has_failed(node)]
    if failed:
        return f"node(s) {failed} ended with an error, and {late} did not come"
    return f"Timed out waiting: {late} did not come within {limit:g} s (LOFI_TIMEOUT)"
