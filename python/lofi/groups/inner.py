# SPDX-License-Identifier: MIT
"""The inner backends of a lofi group: torch's own, one for each device and span of its ranks."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from lofi.groups import crossing, lookup
from lofi.groups.debug import wrap_for_debug
from lofi.job import job
from lofi.job.native import _C
from lofi.job.patch import not_compiled


@dataclass
class Span:
    """Ranks of a group that an inner backend connects, as seen by one of them."""

    name: str  # node, column, world
    label: str  # of these ranks alone
    group: str  # its name
    store: Any
    rank: int  # among these ranks
    ranks: list[int]  # global
    timeout: timedelta
    given: Any = None  # the caller's options
    parent: Any = None  # a backend of the whole node, which all its ranks split now

    @property
    def full_name(self) -> str:
        return f"{self.group}:{self.label}"


class Cpu:
    """gloo, or shared memory where the ranks can share some."""

    def is_possible(self) -> bool:
        return True

    def make(self, span: Span) -> Any:
        gloo = dist.ProcessGroupGloo(span.store, span.rank, len(span.ranks), timeout=span.timeout)
        gloo.options.global_ranks_in_group = span.ranks
        gloo.options.group_name = span.full_name
        return self.with_shm(gloo, span) if job.current().settings.shm else gloo

    def with_shm(self, gloo: Any, span: Span) -> Any:
        what = f"{span.label} of group {span.group}"
        return _C.with_comm(gloo, span.store, span.ranks, span.timeout, what)


class Cuda:
    """NCCL."""

    def is_possible(self) -> bool:
        import torch

        return dist.is_nccl_available() and torch.cuda.is_available()

    def free_bytes(self, device: Any) -> int:
        import torch

        return torch.cuda.mem_get_info(device)[0]

    def process_group(self) -> Any:
        if not dist.is_nccl_available():
            raise RuntimeError("lofi: tensors on cuda need a build of torch with NCCL")
        return dist.ProcessGroupNCCL

    def make(self, span: Span) -> Any:
        process_group = self.process_group()
        options = process_group.Options()
        if isinstance(span.given, process_group.Options):
            options.is_high_priority_stream = span.given.is_high_priority_stream
            options.config = span.given.config
        options._timeout = span.timeout
        options.global_ranks_in_group = span.ranks
        options.group_name = span.full_name
        store = span.store
        if span.name == "node":
            store = _C.NodeStore(store)
            if span.parent is not None:
                options.split_from = unwrapped(span.parent)
                options.split_color = c10d._process_group_color(span.ranks)
        return process_group(store, span.rank, len(span.ranks), options)


# A test puts a double here.
devices: dict[str, Any] = {"cpu": Cpu(), "cuda": Cuda()}


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
    """Makes the inner backends of one group: what lofi::InnerSource asks for.

    parent: a backend of the node, whose ranks all split it now, or leave the split.
    """

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
        if device not in devices:
            known = " or ".join(devices)
            raise RuntimeError(f"lofi: no backend for tensors on {device!r}: use {known}")
        store = dist.PrefixStore(f"lofi/{device}/{label}{again}", self.store)
        rank = ranks.index(self.group.global_rank(self.group.rank))
        whole = Span(
            span, label, self.name, store, rank, ranks, self.timeout, self.given, self.parent
        )
        inner = devices[device].make(whole)
        if dist.get_debug_level() == dist.DebugLevel.DETAIL:
            # torch wraps a group as a whole, and its checks would cross nodes at every call;
            # the inner backends are wrapped instead (see hooks/c10d.py).
            inner = wrap_for_debug(inner, whole.full_name, store, rank, len(ranks), self.timeout)
        return inner

    @not_compiled
    def connect(self, backend: Any, span: str, device: Any) -> None:
        """Connect an inner backend to its device now, and note what that takes of its memory."""
        if device.type == "cpu":
            return
        made = self.made[device.type, span]
        if made.is_connected:  # NCCL would make a second communicator, and count another split
            return
        made.is_connected = True
        before = devices[device.type].free_bytes(device)
        unwrapped(backend).eager_connect_single_device(device)
        made.bytes = max(before - devices[device.type].free_bytes(device), 0)

    def split(
        self, store: Any, ranks: list[int], timeout: timedelta, name: str, parent: Any
    ) -> Any:
        return make_backend(store, ranks, timeout, name, self.given, parent)

    @not_compiled
    def leave_split(self, parent: Any, device: Any) -> None:
        unwrapped(parent).perform_nocolor_split(device)

    @not_compiled
    def note_gather(self) -> bool:
        return crossing.watch_gather()

    @not_compiled
    def before_implicit(self, collective: str, size: int) -> None:
        self.checker.check(collective, size)


def make_backend(
    store: Any,
    ranks: list[int],
    timeout: timedelta,
    name: str,
    given: Any = None,
    parent: Any = None,
) -> Any:
    """A BackendLofi for the members `ranks` (global, in group order; [] is the world)."""
    here = job.current()
    group = _C.Group(here.topology, ranks)
    source = Source(group, job.own_store(store), timeout, name, given, parent)
    is_cuda_possible = devices["cuda"].is_possible()
    backend = _C.BackendLofi(group, source, timeout, name, here.settings.strict, is_cuda_possible)
    if group.node_count == 1:
        # A group inside one node behaves as gloo does: it connects, or fails to, when it is made.
        backend.inner("cpu", "node")
    return backend


def unwrapped(inner: Any) -> Any:
    """The inner backend in what wrap_for_debug made of it."""
    return getattr(inner, "wrapped_pg", inner)
