# SPDX-License-Identifier: MIT
"""What a Work promises when lofi has something left to do behind NCCL; and nodes of one rank."""

import contextlib
import time

import lofi
import on_gpu
import torch
import torch.distributed as dist

pytestmark = on_gpu.needs_gpu
COUNT = 1 << 20


def another_stream():
    if on_gpu.DEVICE == "cpu":
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.Stream())


def check_slots(whole: torch.Tensor, first: int) -> None:
    expected = torch.tensor([first, first + 1] * 2, dtype=whole.dtype, device=whole.device)
    assert torch.equal(whole.view(4, -1), expected[:, None].expand(4, COUNT))


def poll(work: dist.Work) -> None:
    deadline = time.monotonic() + 60
    while not work.is_completed():
        assert time.monotonic() < deadline


def polled_job() -> None:
    """A work that says it is completed has written all slots: no stream has to wait for it."""
    rank = on_gpu.begin("lofi")
    lofi.start()
    own = torch.full((COUNT,), float(rank), device=on_gpu.device())
    for _ in range(20):
        whole = torch.zeros(4 * COUNT, device=on_gpu.device())
        slots = list(torch.zeros(4, COUNT, device=on_gpu.device()).unbind())
        works = [
            dist.all_gather_into_tensor(whole, own, async_op=True),
            dist.all_gather(slots, own, async_op=True),
        ]
        for work in works:
            poll(work)
        with another_stream():
            seen, list_seen = whole.clone(), torch.cat(slots)
            check_slots(seen, rank // 2 * 2)
            check_slots(list_seen, rank // 2 * 2)
        for work in works:
            work.wait()
    dist.barrier()
    dist.destroy_process_group()


def test_polled():
    on_gpu.run(polled_job, 4)


def coalesced_job() -> None:
    rank = on_gpu.begin("lofi")
    lofi.start()
    own = torch.full((COUNT,), float(rank), device=on_gpu.device())
    for how in ("poll", "wait", "poll and wait", "block"):
        whole, other = (torch.zeros(4 * COUNT, device=on_gpu.device()) for _ in range(2))
        with dist._coalescing_manager(device=on_gpu.device(), async_ops=True) as manager:
            dist.all_gather_into_tensor(whole, own)
            dist.all_gather_into_tensor(other, own + 1)
        if "poll" in how:
            for work in manager.works:
                poll(work)
        if how == "block":
            manager.works[0].block_current_stream()
        if "wait" in how:
            manager.wait()
        with another_stream() if how == "poll" else contextlib.nullcontext():
            check_slots(whole.clone(), rank // 2 * 2)
            check_slots(other.clone() - 1, rank // 2 * 2)
    dist.barrier()
    dist.destroy_process_group()


@on_gpu.cuda_only
def test_coalesced():
    on_gpu.run(coalesced_job, 4)


def dropped_job() -> None:
    """Nobody waits, and the outputs are given up: their memory is not used again too early."""
    rank = on_gpu.begin("lofi")
    lofi.start()
    own = torch.full((COUNT,), float(rank), device=on_gpu.device())
    kept = []
    for number in range(50):
        slots = list(torch.zeros(4, COUNT, device=on_gpu.device()).unbind())
        work = dist.all_gather(slots, own, async_op=True)
        if number % 2 == 0:
            del work
        del slots
        kept.append(torch.full((4 * COUNT,), -1.0 - number, device=on_gpu.device()))
    dist.all_reduce(own)
    if on_gpu.DEVICE == "cuda":
        torch.cuda.synchronize()
    for number, one in enumerate(kept):
        assert (one == -1.0 - number).all(), number
    dist.barrier()
    dist.destroy_process_group()


def test_dropped():
    on_gpu.run(dropped_job, 4)


def result_job() -> None:
    on_gpu.begin("lofi")
    lofi.start()
    own = torch.ones(COUNT, device=on_gpu.device())
    whole = torch.zeros(4 * COUNT, device=on_gpu.device())
    work = dist.all_gather_into_tensor(whole, own, async_op=True)
    work.block_current_stream()
    assert whole.sum().item() == 4 * COUNT
    assert work.get_future_result().wait() is not None
    dist.destroy_process_group()


@on_gpu.cuda_only
def test_block_and_result():
    on_gpu.run(result_job, 4)


def one_rank_job() -> None:
    """NCCL before 2.29.7 does not multiply the last elements of some sizes on one rank."""
    on_gpu.begin("lofi")
    lofi.start()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int32):
        for count in (1, 5, 4097, 131073, 131071, 262145 + 7, COUNT + 33):
            x = torch.ones(count, dtype=dtype, device=on_gpu.device())
            dist.all_reduce(x)
            assert (x == 2).all(), (dtype, count)
            dist.reduce(x, dist.get_rank())
            assert (x == 4).all(), (dtype, count)
    dist.barrier()
    dist.destroy_process_group()


def test_nodes_of_one_rank():
    on_gpu.run(one_rank_job, 2, node_size=1)
