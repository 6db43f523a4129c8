# SPDX-License-Identifier: MIT
"""The communicators of this rank: a list of them, their memory, and their end."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from lofi.groups import lookup
from lofi.groups.inner import unwrapped
from lofi.job import job


@dataclass(frozen=True)
class Communicator:
    """One communicator that this rank has."""

    group: str  # name of the process group that it serves
    span: str  # "node": its members in this node; "world": all; "column": one of each node
    device: str  # "cpu" or "cuda"
    transport: str  # "nccl", "gloo", "shm" or "self"
    ranks: list[int]  # of the world
    bytes: int | None  # of device memory that it took to connect; None: not measured


def communicators() -> list[Communicator]:
    """The communicators of this rank, of all lofi groups.

    Each is made when it is first needed; that of the node on CUDA at start if init_process_group
    has a device_id. `bytes` is by how much the free memory of the GPU fell while one was connected,
    so it counts what other processes took meanwhile; it is None on the CPU, and without a
    device_id, when NCCL connects by itself. RuntimeError before init_process_group.
    """
    job.require()
    found = []
    for backend in _backends():
        for made in backend.source.made.values():
            if not made.is_there:
                continue
            inner = unwrapped(backend.inner(made.device, made.span))
            transport = getattr(inner, "transport", None) or inner.name()
            name = backend.source.name
            found.append(
                Communicator(name, made.span, made.device, transport, made.ranks, made.bytes)
            )
    return found


def release_communicators() -> None:
    """End the NCCL communicators that connect nodes, and give their memory back.

    Training does not use them: they are made for what a script does before it (the broadcast of
    weights when a model is wrapped), for averages, and in `lofi.scope("world")`, and are made again
    when they are needed. Collective: every rank of every node calls it at the same point, with no
    collective under way. RuntimeError before init_process_group.
    """
    job.require()
    for backend in _backends():
        backend.release("cuda")
        for made in backend.source.made.values():
            if made.device == "cuda" and made.span != "node":
                made.is_there = False


def _backends() -> list[Any]:
    """The lofi backends of all groups, each once."""
    groups = [group for group in c10d._world.pg_map if isinstance(group, dist.ProcessGroup)]
    backends = [lookup.backend_of(group) for group in groups]
    return [backend for backend in backends if backend is not None]
