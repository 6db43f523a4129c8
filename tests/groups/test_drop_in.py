# SPDX-License-Identifier: MIT
"""Tensors on the CPU that NCCL would take and gloo refuses: means of integers, floats of 8 bits."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.rank_jobs import job
from harness.ranks import run_ranks

INTEGERS = [torch.int8, torch.uint8, torch.int32, torch.int64]
FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2]
AVG = dist.ReduceOp.AVG


def number_of(rank: int, dtype: torch.dtype) -> torch.Tensor:
    signs = torch.tensor([1, 1, 1 if dtype == torch.uint8 else -1])
    return ((3 * rank + torch.tensor([0, 1, 5])) * signs).to(dtype)


def mean_job(dtype: torch.dtype) -> Any:
    """By each collective, before nodes train apart; the first once more in a node."""
    import lofi

    with job():
        rank, size = dist.get_rank(), dist.get_world_size()
        found = {}
        value = number_of(rank, dtype)
        dist.all_reduce(value, AVG)
        found["all_reduce"] = value
        value = number_of(rank, dtype)
        dist.all_reduce(value, AVG, async_op=True).wait()
        found["all_reduce, async"] = value
        value = number_of(rank, dtype)
        dist.reduce(value, 1, AVG)
        found["reduce"] = value if rank == 1 else None
        out = torch.empty(3, dtype=dtype)
        dist.reduce_scatter_tensor(out, number_of(rank, dtype).repeat(size), AVG)
        found["reduce_scatter"] = out
        out = torch.empty(3, dtype=dtype)
        dist.reduce_scatter(out, [number_of(rank, dtype)] * size, AVG)
        found["reduce_scatter of lists"] = out
        lofi.start()
        value = number_of(rank, dtype)
        dist.all_reduce(value, AVG)
        return found, value


@pytest.mark.parametrize("shm", ["1", "0"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_means_of_integers(dtype, shm):
    """Their sum, divided, and rounded towards zero."""
    results = run_ranks(mean_job, 4, dtype, env={"LOFI_NODE_SIZE": "2", "LOFI_SHM": shm})

    def mean(ranks: list[int]) -> torch.Tensor:
        total = sum(number_of(rank, dtype).long() for rank in ranks)
        return torch.div(total, len(ranks), rounding_mode="trunc").to(dtype)

    for rank, (found, mirrored) in enumerate(results):
        for name, value in found.items():
            if value is not None:
                assert torch.equal(value, mean([0, 1, 2, 3])), (rank, name, value)
        assert torch.equal(mirrored, mean([rank // 2 * 2, rank // 2 * 2 + 1])), (rank, mirrored)


def moves_job(dtype: torch.dtype) -> Any:
    with job():
        rank, size = dist.get_rank(), dist.get_world_size()

        def of(number: int) -> torch.Tensor:
            return torch.full((4,), 1.0 + number).to(dtype)

        found = {}
        found["broadcast"] = of(rank)
        dist.broadcast(found["broadcast"], 2)
        parts = [of(9) for _ in range(size)]
        dist.all_gather(parts, of(rank))
        found["all_gather"] = torch.stack([part.float() for part in parts])
        found["all_gather_into_tensor"] = torch.empty(4 * size, dtype=dtype)
        dist.all_gather_into_tensor(found["all_gather_into_tensor"], of(rank))
        parts = [of(9) for _ in range(size)]
        dist.gather(of(rank), parts if rank == 1 else None, 1)
        found["gather"] = torch.stack([part.float() for part in parts])
        found["scatter"] = of(9)
        dist.scatter(found["scatter"], [of(i) for i in range(size)] if rank == 0 else None, 0)
        found["all_to_all_single"] = torch.empty(4 * size, dtype=dtype)
        whole = torch.cat([of(i).float() for i in range(size)]).to(dtype)
        dist.all_to_all_single(found["all_to_all_single"], whole)
        return {name: value.float() for name, value in found.items()}


@pytest.mark.parametrize("shm", ["1", "0"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_of_8_bits_are_moved(dtype, shm):
    results = run_ranks(moves_job, 4, dtype, env={"LOFI_NODE_SIZE": "2", "LOFI_SHM": shm})
    rows = (1.0 + torch.arange(4)).repeat_interleave(4)
    for rank, found in enumerate(results):
        assert torch.equal(found["broadcast"], torch.full((4,), 3.0))
        assert torch.equal(found["all_gather"].flatten(), rows)
        assert torch.equal(found["all_gather_into_tensor"], rows)
        if rank == 1:
            assert torch.equal(found["gather"].flatten(), rows)
        assert torch.equal(found["scatter"], torch.full((4,), 1.0 + rank))
        assert torch.equal(found["all_to_all_single"], torch.full((16,), 1.0 + rank))
