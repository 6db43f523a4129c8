# SPDX-License-Identifier: MIT
"""A step of DDP as the profiler sees it: under lofi nothing is added to what nccl does."""

from collections import Counter
from typing import Any

import on_gpu
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

pytestmark = [on_gpu.needs_gpu, on_gpu.cuda_only]

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def trace_job(backend: str) -> dict[str, Any]:
    on_gpu.begin(backend)
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Linear(512, 512), nn.ReLU())]
    model = DDP(nn.Sequential(*layers).cuda(), device_ids=[0], bucket_cap_mb=1)
    data = torch.randn(64, 512, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    dist.barrier()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    kernels, calls = [], Counter()
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            name = "nccl" if "nccl" in event.name.lower() else event.name
            kernels.append((event.time_range.start, name))
        elif event.name in WAITS or event.name.startswith("cudaMemcpy"):
            calls[event.name] += 1
    kernels.sort()
    names = [name for _, name in kernels]
    return {
        "kernels": Counter(names),
        "calls": calls,
        "first_reduction": names.index("nccl") if "nccl" in names else -1,
        "last_kernel": len(names) - 1,
    }


def test_nothing_is_added():
    ours = on_gpu.run(trace_job, 4, "lofi")
    theirs = on_gpu.run(trace_job, 2, on_gpu.REFERENCE)
    expected = theirs[0]
    assert expected["kernels"]["nccl"] > 2  # several buckets
    for seen in ours:
        assert seen["kernels"] == expected["kernels"]
        assert seen["calls"] == expected["calls"]
        # The first bucket goes while the backward of earlier layers is still to come.
        assert 0 <= seen["first_reduction"] < seen["last_kernel"] - 5
