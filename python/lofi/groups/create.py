# SPDX-License-Identifier: MIT
"""The creator that torch.distributed calls for each lofi group, and the inner backends."""

import atexit
import functools
import json
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from lofi import features
from lofi.groups import crossing, lookup, node_group
from lofi.groups.debug import wrap_for_debug
from lofi.job import config, job
from lofi.job.log import log
from lofi.job.native import _C
from lofi.job.patch import not_compiled


def create(options: Any, backend_options: Any = None) -> Any:
    """Extended creator: `global_ranks_in_group` places a sub-group; the default's is []."""
    if getattr(options, "enable_reconfigure", False):
        raise ValueError("lofi: enable_reconfigure is not supported: nodes are fixed at start")
    ranks = list(options.global_ranks_in_group)
    if not ranks:
        _begin_world(options.store, options.group_rank, options.group_size, options.timeout)
    elif job.current().topology is None:
        _begin_from_group(options, ranks)
    features.install(is_launched=False)
    name, parent = str(options.group_id), _split_parent(options)
    return make(options.store, ranks, options.timeout, name, backend_options, parent)


def _split_parent(options: Any) -> Any:
    """The connected backend of the node that all its ranks split now, where torch finds one.

    torch asks ranks that are not in the group for perform_nocolor_split on the same condition.
    """
    if not options.global_ranks_in_group or dist.group.WORLD is None:
        return None
    if node_group.MARK in str(options.group_id):  # made by its members alone
        return None
    device = dist.group.WORLD.bound_device_id
    if device is None or device.type == "cpu":
        return None
    # Before torch 2.14 a plug-in is not told which group is split.
    whole = getattr(options, "split_from", lookup.backend_of(None))
    return whole.inner(device.type, "node") if isinstance(whole, _C.BackendLofi) else None


def make(
    store: Any,
    ranks: list[int],
    timeout: timedelta,
    name: str,
    given: Any = None,
    parent: Any = None,
) -> Any:
    """A BackendLofi for the members `ranks` (global, in group order; [] is the world).

    parent: a ProcessGroupNCCL of the node, whose ranks all split it now, or leave the split.
    """
    here = job.current()
    group = _C.Group(here.topology, ranks)
    source = Source(group, job.own_store(store), timeout, name, given, parent)
    backend = _C.BackendLofi(
        group, source, timeout, name, here.settings.strict, _cuda_backend_possible()
    )
    if group.node_count == 1:
        # A group inside one node behaves as gloo does: it connects, or fails to, when it is made.
        backend.inner("cpu", "node")
    return backend


def _cuda_backend_possible() -> bool:
    import torch

    return dist.is_nccl_available() and torch.cuda.is_available()


def _begin_world(store: Any, rank: int, size: int, timeout: timedelta) -> None:
    job.next_job()
    store = job.own_store(store)
    problem = ""
    settings = config.Settings()
    try:
        settings = config.read()
    except ValueError as error:
        problem = str(error)  # told to every rank, so that none waits for this one
    topology = _C.Topology(
        store, rank, size, settings.node_size, settings.shared(), problem, timeout
    )
    job.begin(topology, settings, store)
    for sentence in config.unknown_variables():
        log("warn", sentence)
    if rank == 0:
        log(
            "info",
            f"nodes {topology.node_count} ranks per node {topology.node_size} "
            f"from {topology.source}; {_C.build_info()}",
        )
    _write_stats_at_exit(rank)


def _begin_from_group(options: Any, ranks: list[int]) -> None:
    """backend="lofi" for a sub-group only: the nodes are still those of the whole world."""
    if len(ranks) != dist.get_world_size():
        raise ValueError(
            f"lofi: a group of ranks {ranks} was asked for before lofi knows the nodes of the "
            'world: use init_process_group(backend="lofi"), or make a lofi group of all ranks first'
        )
    _begin_world(options.store, dist.get_rank(), len(ranks), options.timeout)


@dataclass
class Made:
    """An inner backend that was made."""

    device: str
    span: str
    ranks: list[int]  # global
    times: int = 0  # that one was made
    is_there: bool = False  # and was not released since
    is_connected: bool = False  # to its device, by lofi
    bytes: int | None = None  # of the device's memory; None: not measured


class Source:
    """Makes the inner backends of one group: what lofi::InnerSource asks for."""

    def __init__(
        self,
        group: Any,
        store: Any,
        timeout: timedelta,
        name: str,
        given: Any = None,
        parent: Any = None,
    ):
        self.group, self.store, self.timeout, self.name = group, store, timeout, name
        self.given, self.parent = given, parent
        self.made: dict[tuple[str, str], Made] = {}
        self.checker = crossing.Checker(group, store)

    def members(self, span: str) -> tuple[list[int], str]:
        """The group ranks that a span connects, in order, and a label that is theirs alone."""
        group = self.group
        node, place = group.node_of(group.rank), group.place(group.rank)
        if span == "node":
            return lookup.local_members(group), f"node{node}"
        if span == "column":
            return [group.member(i, place) for i in range(group.node_count)], f"column{place}"
        return list(range(group.size)), "world"

    @not_compiled
    def make(self, device: str, span: str) -> Any:
        members, label = self.members(span)
        ranks = [self.group.global_rank(member) for member in members]
        made = self.made.setdefault((device, span), Made(device, span, ranks))
        # A backend that was released has left its keys in the store, so the next one needs others.
        again = f"/{made.times}" if made.times else ""
        made.times += 1
        made.is_there, made.is_connected = True, False
        return self.connect_ranks(device, span, ranks, label, again)

    def connect_ranks(
        self, device: str, span: str, ranks: list[int], label: str, again: str = ""
    ) -> Any:
        """An inner backend of some ranks of the group (global), under a label that is theirs."""
        store = dist.PrefixStore(f"lofi/{device}/{label}{again}", self.store)
        rank = ranks.index(self.group.global_rank(self.group.rank))
        name = f"{self.name}:{label}"
        if device == "cpu":
            inner = self._gloo(store, rank, ranks, name)
            if job.current().settings.shm:
                inner = self._with_shm(inner, store, ranks, f"{label} of group {self.name}")
        elif device == "cuda":
            inner = self._nccl(store, rank, ranks, name, span)
        else:
            raise RuntimeError(f"lofi: no backend for tensors on {device!r}: use cpu or cuda")
        if dist.get_debug_level() == dist.DebugLevel.DETAIL:
            # torch wraps a group as a whole, and its checks would cross nodes at every call;
            # the inner backends are wrapped instead (see hooks/c10d.py).
            inner = wrap_for_debug(inner, name, store, rank, len(ranks), self.timeout)
        return inner

    def _gloo(self, store: Any, rank: int, ranks: list[int], name: str) -> Any:
        inner = dist.ProcessGroupGloo(store, rank, len(ranks), timeout=self.timeout)
        inner.options.global_ranks_in_group = ranks
        inner.options.group_name = name
        return inner

    def _with_shm(self, gloo: Any, store: Any, ranks: list[int], name: str) -> Any:
        return _C.with_comm(gloo, store, ranks, self.timeout, name)

    def _nccl(self, store: Any, rank: int, ranks: list[int], name: str, span: str) -> Any:
        if not dist.is_nccl_available():
            raise RuntimeError("lofi: tensors on cuda need a build of torch with NCCL")
        options = dist.ProcessGroupNCCL.Options()
        if isinstance(self.given, dist.ProcessGroupNCCL.Options):
            options.is_high_priority_stream = self.given.is_high_priority_stream
            options.config = self.given.config
        options._timeout = self.timeout
        options.global_ranks_in_group = ranks
        options.group_name = name
        if self.parent is not None and span == "node":
            options.split_from = unwrapped(self.parent)
            options.split_color = c10d._process_group_color(ranks)
        if span == "node":
            store = _C.NodeStore(store)
        return dist.ProcessGroupNCCL(store, rank, len(ranks), options)

    @not_compiled
    def connect(self, backend: Any, span: str, device: Any) -> None:
        """Connect an inner backend to its device now, and note what that takes of its memory."""
        if device.type == "cpu":
            return
        made = self.made[device.type, span]
        if made.is_connected:  # NCCL would make a second communicator, and count another split
            return
        made.is_connected = True
        before = _free_bytes(device)
        unwrapped(backend).eager_connect_single_device(device)
        made.bytes = max(before - _free_bytes(device), 0)

    def split(
        self, store: Any, ranks: list[int], timeout: timedelta, name: str, parent: Any
    ) -> Any:
        return make(store, ranks, timeout, name, self.given, parent)

    @not_compiled
    def leave_split(self, parent: Any, device: Any) -> None:
        unwrapped(parent).perform_nocolor_split(device)

    @not_compiled
    def before_implicit(self, collective: str) -> None:
        self.checker.check(collective)


def unwrapped(inner: Any) -> Any:
    """The inner backend in what wrap_for_debug made of it."""
    return getattr(inner, "wrapped_pg", inner)


def _free_bytes(device: Any) -> int:
    import torch

    return torch.cuda.mem_get_info(device)[0]


@functools.cache  # of the first default group of this process
def _write_stats_at_exit(rank: int) -> None:
    """LOFI_STATS=path: each rank writes path.rank<r>.json, stats() as the process ends."""
    path = os.environ.get("LOFI_STATS")
    if not path:
        return

    def write() -> None:
        try:
            with open(f"{path}.rank{rank}.json", "w") as file:
                json.dump(_C.stats(), file, indent=1)
        except OSError as error:
            log("error", f"LOFI_STATS: {error}")

    atexit.register(write)
