# SPDX-License-Identifier: MIT
"""Gradients of collectives, while nodes train apart."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_fn
from harness.rank_jobs import (
    job,
    raised,
    run_nodes,
    train,
    wrapped,
)
from harness.ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

NODES = 2


def _slot_weights(rank: int) -> torch.Tensor:
    """What rank multiplies each member's slot with."""
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(rank)).double()


def _autograd() -> Any:
    with job():
        model = wrapped()
        train(model, 1)
        rank = dist.get_rank()
        value = torch.full((3,), float(rank), dtype=torch.float64, requires_grad=True)

        slots = dist_fn.all_gather(value)
        gathered = torch.stack([slot.detach() for slot in slots])
        (torch.stack(slots) * _slot_weights(rank)).sum().backward()
        by_list, value.grad = value.grad, None

        total = dist_fn.all_reduce(value.clone())
        (total * _slot_weights(rank)[0]).sum().backward()
        return gathered, by_list, total.detach(), value.grad


@pytest.mark.quick
def test_autograd_of_collectives_is_the_derivative_of_what_the_node_computes():
    results = run_nodes(_autograd)
    for rank, (gathered, by_list, total, by_sum) in enumerate(results):
        members = [rank // 2 * 2, rank // 2 * 2 + 1]
        assert gathered[:, 0].tolist() == [float(members[place % 2]) for place in range(4)]
        slots = [rank % 2, 2 + rank % 2]
        of_slots = sum(_slot_weights(member)[slot] for member in members for slot in slots)
        assert torch.allclose(by_list, of_slots, rtol=1e-12)
        assert total.tolist() == [NODES * float(sum(members))] * 3
        of_sum = sum(_slot_weights(member)[0] for member in members)
        assert torch.allclose(by_sum, NODES * of_sum, rtol=1e-12)


def _not_on_cpu() -> Any:
    with job():
        model = wrapped()
        train(model, 1)
        value = torch.ones(3, requires_grad=True)
        flat = dist_fn._all_gather_base(torch.empty(12), value)
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(8)))
        return raised(flat.sum().backward), raised(DDP, synced)


def test_what_torch_itself_refuses_on_cpu():
    for backward, sync in run_nodes(_not_on_cpu):
        assert "Backend not supported" in backward.text
        assert "SyncBatchNorm layers only work with GPU modules" in sync.text


def _every_backward(is_launched: bool, folder: str) -> dict[str, Any]:
    """The gradient that each functional collective gives, or the error."""
    os.chdir(folder)  # where the launcher writes the average at the end
    backend = "lofi"
    if is_launched:
        from lofi.launch import main

        main.take_over()
        backend = "gloo"
    with job(backend):
        train(wrapped(), 1)
        rank, size = dist.get_rank(), dist.get_world_size()
        found: dict[str, Any] = {}

        def note(name: str, collective: Callable[[torch.Tensor], Any]) -> None:
            value = torch.full((3,), 1.0 + rank, dtype=torch.float64, requires_grad=True)
            try:
                given = collective(value)
                parts = given if isinstance(given, (tuple, list)) else [given]
                weighted = [part * (7.0 * rank + i) for i, part in enumerate(parts)]
                torch.stack(weighted).sum().backward()
                found[name] = value.grad
            except (RuntimeError, ValueError) as error:
                found[name] = type(error).__name__

        note("all_gather", dist_fn.all_gather)
        note("all_reduce", dist_fn.all_reduce)
        note("reduce", lambda value: dist_fn.reduce(value, 0))
        note("gather", lambda value: dist_fn.gather(value, 0))
        note("broadcast", lambda value: dist_fn.broadcast(value, 0))
        note("scatter", lambda value: dist_fn.scatter([value * i for i in range(size)], 0))
        note("all_to_all", lambda v: dist_fn.all_to_all([v] * size, [v * i for i in range(size)]))
        return found


@pytest.mark.parametrize("nodes", [2, 3])
def test_every_backward_by_name_and_by_launcher(nodes, tmp_path):
    """get_backend() answers "gloo" under the launcher, and torch branches on it."""
    env = {"LOFI_NODE_SIZE": "2"}
    by_name, launched = (
        run_ranks(_every_backward, 2 * nodes, is_launched, str(tmp_path), env=env)
        for is_launched in (False, True)
    )
    for rank, (named, other) in enumerate(zip(by_name, launched, strict=True)):
        assert named.keys() == other.keys()
        for name, grad in named.items():
            same = grad == other[name] if isinstance(grad, str) else torch.equal(grad, other[name])
            assert same, (rank, name, grad, other[name])
        # What this node's ranks multiply the slots of this rank and of its images with.
        mates = (rank // 2 * 2, rank // 2 * 2 + 1)
        slots = [2 * node + rank % 2 for node in range(nodes)]
        assert named["all_gather"].tolist() == [sum(7.0 * m + s for m in mates for s in slots)] * 3
