# SPDX-License-Identifier: MIT
"""Gradients of collectives, while nodes train apart."""

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
def test_autograd_of_collectives_is_the_mirrored_worlds():
    results = run_nodes(_autograd)
    for rank, (gathered, by_list, total, by_sum) in enumerate(results):
        members = [rank // 2 * 2, rank // 2 * 2 + 1]
        assert gathered[:, 0].tolist() == [float(members[place % 2]) for place in range(4)]
        of_slot = sum(_slot_weights(member)[rank] for member in members)
        assert torch.allclose(by_list, NODES * of_slot, rtol=1e-12)
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
