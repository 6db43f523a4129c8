# SPDX-License-Identifier: MIT
"""Communicators on a GPU: which there are, when, how they end; and ranks that die."""

import os
import signal
import time
from datetime import timedelta
from typing import Any

import lofi
import on_gpu
import torch
import torch.distributed as dist

pytestmark = [on_gpu.needs_gpu, on_gpu.cuda_only]


def mixed_job() -> None:
    """CPU and GPU tensors on one group; NCCL's own work comes back."""
    rank = on_gpu.begin("lofi")
    on_cpu, there = torch.full((5,), float(rank)), torch.full((5,), float(rank), device="cuda")
    dist.all_reduce(on_cpu)
    dist.all_reduce(there)
    assert on_cpu[0] == there[0].item() == 6
    lofi.start()
    work = dist.all_reduce(there, async_op=True)
    assert type(work).__name__ == "Work" and work.get_future() is not None
    work.wait()
    assert there[0].item() == 24
    first = rank // 2 * 2
    slots = [torch.zeros(2, device="cuda") for _ in range(4)]
    dist.all_gather(slots, torch.full((2,), float(rank), device="cuda"))
    assert [slot[1].item() for slot in slots] == [first, first + 1] * 2
    whole = torch.zeros(8, device="cuda")
    own = torch.full((2,), float(rank), device="cuda")
    with dist._coalescing_manager(device=torch.device("cuda", 0)):
        dist.all_gather_into_tensor(whole, own)
    assert whole[::2].tolist() == [first, first + 1] * 2
    other, total = torch.zeros(8, device="cuda"), torch.ones(3, dtype=torch.int32, device="cuda")
    with dist._coalescing_manager(device=torch.device("cuda", 0), async_ops=True) as manager:
        dist.all_gather_into_tensor(whole.zero_(), own)
        dist.all_gather_into_tensor(other, own + 1)
    manager.wait()
    assert whole[::2].tolist() == [first, first + 1] * 2
    assert other[::2].tolist() == [first + 1, first + 2] * 2
    dist.all_reduce(total)
    assert total[0].item() == 4
    mean = torch.full((3,), float(rank), device="cuda", dtype=torch.bfloat16)
    dist.all_reduce(mean, op=dist.ReduceOp.AVG)
    assert mean[0].item() == first + 0.5
    dist.barrier()
    dist.destroy_process_group()


def test_cpu_and_gpu_under_one_name():
    on_gpu.run(mixed_job, 4)


def bound_job() -> list[Any]:
    rank = on_gpu.begin("lofi", device_id=torch.device("cuda", 0))
    node = rank // 2
    seen = lofi.communicators()
    assert [(c.span, c.transport) for c in seen if c.device == "cuda"] == [("node", "nccl")]
    pair = [dist.new_group([0, 1]), dist.new_group([2, 3])][node]  # by ncclCommSplit
    across = [dist.new_group([0, 2]), dist.new_group([1, 3])][rank % 2]
    three = dist.new_group([0, 1, 2])
    x = torch.ones(4, device="cuda")
    dist.all_reduce(x, group=pair)
    dist.all_reduce(x, group=across)
    if rank != 3:
        dist.all_reduce(x, group=three)
    assert x[0].item() == (4.0 if rank == 3 else 12.0)
    halves = dist.split_group(split_ranks=[[0, 1], [2, 3]])
    dist.all_reduce(x.fill_(1), group=halves)
    assert x[0].item() == 2
    torch.cuda.synchronize()
    told = [(c.group, c.span, c.bytes) for c in lofi.communicators() if c.device == "cuda"]
    dist.barrier()
    dist.destroy_process_group()
    return told


def test_device_id_and_split(record_property):
    for number, told in enumerate(on_gpu.run(bound_job, 4)):
        record_property(f"communicators_rank{number}", str(told))


def release_job() -> tuple[int, int, int]:
    on_gpu.begin("lofi")
    x = torch.ones(1 << 20, device="cuda")
    lofi.start()
    dist.all_reduce(x)
    torch.cuda.synchronize()
    dist.barrier()
    before = torch.cuda.mem_get_info()[0]
    with lofi.scope("world"):
        dist.all_reduce(x)
    torch.cuda.synchronize()
    time.sleep(1)
    during = torch.cuda.mem_get_info()[0]
    lofi.release_communicators()
    time.sleep(2)
    after = torch.cuda.mem_get_info()[0]
    with lofi.scope("world"):
        dist.all_reduce(x.fill_(1))
    assert x[0].item() == 4
    return before, during, after


def test_release(record_property):
    for rank, (before, during, after) in enumerate(on_gpu.run(release_job, 4)):
        assert during < before and after > during
        record_property(f"world_communicators_MB_rank{rank}", (before - during) / 1e6)


def dying_job() -> None:
    rank = on_gpu.begin("lofi", timeout=timedelta(seconds=10))
    lofi.start()
    x = torch.ones(1000, device="cuda")
    dist.all_reduce(x)
    torch.cuda.synchronize()
    if rank == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(50):
        dist.all_reduce(x)
        torch.cuda.synchronize()
        time.sleep(0.1)


def test_a_rank_that_dies():
    """The other rank of its node ends as under nccl; the other node does not notice."""
    # The watchdog waits four times this long before it ends its process.
    env = {"TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "1000"}
    begun = time.monotonic()
    results = on_gpu.run(dying_job, 4, env=env, may_fail=True, timeout=180)
    assert time.monotonic() - begun < 120
    assert [isinstance(result, on_gpu.Failed) for result in results] == [False, False, True, True]
