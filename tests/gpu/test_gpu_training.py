# SPDX-License-Identifier: MIT
"""Two nodes of two ranks on one GPU: each node trains to the bits that it reaches alone."""

import os
from typing import Any

import on_gpu
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

pytestmark = on_gpu.needs_gpu

STEPS, BATCH, WIDTH = 12, 16, 64
MODES = ["float32", "bfloat16 autocast", "float16 GradScaler", "bfloat16 hook", "compiled"]


def create_model() -> nn.Module:
    torch.manual_seed(0)
    block = [nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)]
    return nn.Sequential(*block, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8))


def inputs(number: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * number + step)
    return torch.randn(BATCH, WIDTH, generator=generator).to(on_gpu.device())


def train_job(backend: str, mode: str) -> Any:
    rank = on_gpu.begin(backend)
    number = rank + int(os.environ.get("LOFI_TEST_FIRST_RANK", "0"))
    ids = [0] if on_gpu.DEVICE == "cuda" else None
    # Several buckets; Dynamo, which cuts graphs at buckets, wants none smaller than the first.
    cap = 25 if mode == "compiled" else 0.05
    model = DDP(create_model().to(on_gpu.device()), device_ids=ids, bucket_cap_mb=cap)
    if mode == "bfloat16 hook":
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        model.register_comm_hook(None, bf16_compress_hook)
    forward = torch.compile(model, backend="aot_eager") if mode == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(on_gpu.DEVICE, init_scale=2.0**10, enabled="float16" in mode)
    lower = torch.float16 if "float16 " in mode else torch.bfloat16
    is_cast = "autocast" in mode or "GradScaler" in mode
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast(on_gpu.DEVICE, lower, enabled=is_cast):
            loss = forward(inputs(number, step)).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append((mean / dist.get_world_size()).item())
    state = {name: value.cpu() for name, value in model.module.state_dict().items()}
    crossed = 0
    if backend == "lofi":
        import lofi

        crossed = lofi.stats()["cross_bytes"]["training"]
    return state, losses, crossed


@pytest.mark.parametrize("mode", MODES)
def test_a_node_is_as_if_alone(mode):
    together = on_gpu.run(train_job, 4, "lofi", mode)
    for node in (0, 1):
        env = {"LOFI_TEST_FIRST_RANK": str(2 * node)}
        alone = on_gpu.run(train_job, 2, on_gpu.REFERENCE, mode, env=env)
        for place in (0, 1):
            state, losses, crossed = together[2 * node + place]
            expected, expected_losses, _ = alone[place]
            assert crossed == 0
            assert losses == expected_losses
            for name, value in expected.items():
                assert torch.equal(state[name], value), (mode, node, name)
    first, second = together[0][0], together[2][0]
    assert not torch.equal(first["0.weight"], second["0.weight"])


def hsdp_job(backend: str) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    rank = on_gpu.begin(backend)
    number = rank + int(os.environ.get("LOFI_TEST_FIRST_RANK", "0"))
    nodes = dist.get_world_size() // 2
    model = create_model().to(on_gpu.device())
    shape, names = ((nodes, 2), ("nodes", "ranks")) if backend == "lofi" else ((2,), ("ranks",))
    mesh = init_device_mesh(on_gpu.DEVICE, shape, mesh_dim_names=names)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(inputs(number, step)).float().square().mean().backward()
        optimizer.step()
    return [parameter.to_local().cpu() for parameter in model.parameters()]


def test_hsdp():
    together = on_gpu.run(hsdp_job, 4, "lofi")
    for node in (0, 1):
        env = {"LOFI_TEST_FIRST_RANK": str(2 * node)}
        alone = on_gpu.run(hsdp_job, 2, on_gpu.REFERENCE, env=env)
        for place in (0, 1):
            for ours, theirs in zip(together[2 * node + place], alone[place], strict=True):
                assert torch.equal(ours, theirs)


def graph_job() -> list[float]:
    import lofi

    rank = on_gpu.begin("lofi")
    lofi.start()
    x = torch.zeros(1000, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            dist.all_reduce(x)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        dist.all_reduce(x)
    seen = []
    for number in range(3):
        x.fill_(rank + number)
        graph.replay()
        seen.append(x[999].item())
    return seen


@on_gpu.cuda_only
def test_a_collective_in_a_graph():
    results = on_gpu.run(graph_job, 4)
    assert results == [[2.0 * (2 * (r // 2 * 2) + 1 + 2 * n) for n in range(3)] for r in range(4)]
