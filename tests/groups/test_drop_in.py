# SPDX-License-Identifier: MIT
"""Tensors on the CPU that NCCL would take and gloo refuses: means of integers, floats of 8 bits,
gathers of complex numbers, factors in a sum, lists of tensors that differ in size."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.rank_jobs import job, raised
from harness.ranks import run_ranks

INTEGERS = [torch.int8, torch.uint8, torch.int32, torch.int64]
MOVED = [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128]
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

        def plain(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if tensor.is_complex() else tensor.float()

        found = {}
        found["broadcast"] = of(rank)
        dist.broadcast(found["broadcast"], 2)
        parts = [of(9) for _ in range(size)]
        dist.all_gather(parts, of(rank))
        found["all_gather"] = torch.stack([plain(part) for part in parts])
        found["all_gather_into_tensor"] = torch.empty(4 * size, dtype=dtype)
        dist.all_gather_into_tensor(found["all_gather_into_tensor"], of(rank))
        parts = [of(9) for _ in range(size)]
        dist.gather(of(rank), parts if rank == 1 else None, 1)
        found["gather"] = torch.stack([plain(part) for part in parts])
        found["scatter"] = of(9)
        dist.scatter(found["scatter"], [of(i) for i in range(size)] if rank == 0 else None, 0)
        found["all_to_all_single"] = torch.empty(4 * size, dtype=dtype)
        whole = torch.cat([plain(of(i)) for i in range(size)]).to(dtype)
        dist.all_to_all_single(found["all_to_all_single"], whole)
        return {name: plain(value).cfloat() for name, value in found.items()}


@pytest.mark.parametrize("shm", ["1", "0"])
@pytest.mark.parametrize("dtype", MOVED)
def test_what_gloo_does_not_move(dtype, shm):
    results = run_ranks(moves_job, 4, dtype, env={"LOFI_NODE_SIZE": "2", "LOFI_SHM": shm})
    rows = (1.0 + torch.arange(4)).repeat_interleave(4).cfloat()
    for rank, found in enumerate(results):
        assert torch.equal(found["broadcast"], torch.full((4,), 3.0).cfloat())
        assert torch.equal(found["all_gather"].flatten(), rows)
        assert torch.equal(found["all_gather_into_tensor"], rows)
        if rank == 1:
            assert torch.equal(found["gather"].flatten(), rows)
        assert torch.equal(found["scatter"], torch.full((4,), 1.0 + rank).cfloat())
        assert torch.equal(found["all_to_all_single"], torch.full((16,), 1.0 + rank).cfloat())


OPS = {
    "sum": (dist.ReduceOp.SUM, lambda parts: sum(parts)),
    "mean": (AVG, lambda parts: sum(parts) / len(parts)),
    "product": (dist.ReduceOp.PRODUCT, lambda parts: torch.stack(parts).prod(0)),
    "max": (dist.ReduceOp.MAX, lambda parts: torch.stack(parts).amax(0)),
    "min": (dist.ReduceOp.MIN, lambda parts: torch.stack(parts).amin(0)),
    "3 x sum": (dist._make_nccl_premul_sum(3.0), lambda parts: sum(3 * part for part in parts)),
    "x x sum": (
        dist._make_nccl_premul_sum(torch.tensor(3.0)),
        lambda parts: sum(3 * part for part in parts),
    ),
}


def some(rank: int, dtype: torch.dtype) -> torch.Tensor:
    """Small numbers, so that all sums and products are exact in float32."""
    values = torch.randint(-4, 5, (6,), generator=torch.Generator().manual_seed(rank))
    return values.to(torch.float32).to(dtype)


def reduces_job(dtype: torch.dtype, name: str) -> Any:
    import lofi

    op = OPS[name][0]
    with job():
        rank, size = dist.get_rank(), dist.get_world_size()
        found = {"all_reduce": some(rank, dtype)}
        dist.all_reduce(found["all_reduce"], op)
        found["all_reduce, async"] = some(rank, dtype)
        dist.all_reduce(found["all_reduce, async"], op, async_op=True).wait()
        value = some(rank, dtype)
        dist.reduce(value, 1, op)
        found["reduce"] = value
        found["reduce_scatter"] = torch.empty(6, dtype=dtype)
        inputs = torch.stack([some(rank, dtype)] * size).flatten()
        dist.reduce_scatter_tensor(found["reduce_scatter"], inputs, op)
        found["reduce_scatter of lists"] = torch.empty(6, dtype=dtype)
        dist.reduce_scatter(found["reduce_scatter of lists"], [some(rank, dtype)] * size, op)
        lofi.start()
        mirrored = some(rank, dtype)
        dist.all_reduce(mirrored, op)
        return {name: value.cdouble() for name, value in found.items()}, mirrored.cdouble()


@pytest.mark.parametrize("shm", ["1", "0"])
@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        *((dtype, name) for dtype in MOVED[:2] for name in OPS),
        *((dtype, name) for dtype in MOVED[2:] for name in ("sum", "mean", "3 x sum")),
        *((dtype, "3 x sum") for dtype in (torch.float32, torch.float64, torch.bfloat16)),
    ],
)
def test_reductions_that_gloo_does_not_know(dtype, name, shm):
    """Computed wide, and rounded once to the dtype."""
    env = {"LOFI_NODE_SIZE": "2", "LOFI_SHM": shm}
    wide = torch.complex128 if dtype.is_complex else torch.float64
    parts = [some(rank, dtype).to(wide) for rank in range(4)]

    def result(values: list[torch.Tensor]) -> torch.Tensor:
        return OPS[name][1](values).to(dtype).cdouble()

    for rank, (found, mirrored) in enumerate(run_ranks(reduces_job, 4, dtype, name, env=env)):
        for collective, value in found.items():
            if collective == "reduce" and rank != 1:  # gloo leaves partial sums there
                continue
            assert torch.equal(value, result(parts)), (rank, collective, value)
        mine = rank // 2 * 2
        assert torch.equal(mirrored, result(2 * parts[mine : mine + 2])), (rank, mirrored)


def uneven_job(dtype: torch.dtype, of_nodes: bool) -> Any:
    """Member i gives i + 1 elements, or the place of i + 1."""
    import lofi

    with job():
        rank, size = dist.get_rank(), dist.get_world_size()

        def of(number: int, length: int) -> torch.Tensor:
            return torch.full((length, 2), number).to(dtype)

        def lengths() -> list[int]:
            return [1 + (i % 2 if of_nodes else i) for i in range(size)]

        if of_nodes:
            lofi.start()
        gathered = [of(9, length) for length in lengths()]
        dist.all_gather(gathered, of(rank, lengths()[rank]))
        reduced = of(9, lengths()[rank])
        if not of_nodes:
            inputs = [of(1 + rank + 10 * i, length) for i, length in enumerate(lengths())]
            dist.reduce_scatter(reduced, inputs)
        return gathered, reduced


@pytest.mark.parametrize("shm", ["1", "0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.complex64])
def test_lists_that_differ_in_size(dtype, shm):
    env = {"LOFI_NODE_SIZE": "2", "LOFI_SHM": shm}
    for rank, (gathered, reduced) in enumerate(run_ranks(uneven_job, 4, dtype, False, env=env)):
        for i, part in enumerate(gathered):
            assert torch.equal(part, torch.full((i + 1, 2), i).to(dtype))
        assert torch.equal(reduced, torch.full((rank + 1, 2), 10 + 40 * rank).to(dtype))
    for rank, (gathered, _) in enumerate(run_ranks(uneven_job, 4, dtype, True, env=env)):
        for i, part in enumerate(gathered):
            image = rank // 2 * 2 + i % 2
            assert torch.equal(part, torch.full((i % 2 + 1, 2), image).to(dtype))


def uneven_images_job() -> Any:
    import lofi

    with job():
        lofi.start()
        outputs = [torch.zeros(i + 1) for i in range(4)]
        return raised(lambda: dist.all_gather(outputs, torch.zeros(dist.get_rank() + 1)))


def test_images_that_differ_in_size_are_told():
    for error in run_ranks(uneven_images_job, 4, env={"LOFI_NODE_SIZE": "2"}):
        assert error.type == "RuntimeError"
        assert "its image" in error.text and "pad" in error.text
