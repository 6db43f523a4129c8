# SPDX-License-Identifier: MIT
"""finalize_average of 1.3 billion bfloat16 parameters on a GPU, and of shards."""

from typing import Any

import lofi
import on_gpu
import pytest
import torch
import torch.distributed as dist
from harness import truth

pytestmark = on_gpu.needs_gpu

SCRATCH = 256 << 20
SLACK = 48 << 20  # torch's allocator rounds; samples of tensors are compared


def shapes(million: int) -> list[tuple[int, ...]]:
    """Of a GPT: embeddings, square and oblong matrices, biases with odd sizes."""
    found: list[tuple[int, ...]] = [(50257, 2048)]
    while sum(torch.Size(shape).numel() for shape in found) < million * 1_000_000:
        found += [(2048, 6144), (6144,), (2048, 2048), (2047,), (2048, 8192), (8192, 2048)]
    return found


def weights_of(node: int, index: int, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator(on_gpu.device()).manual_seed(1000 * index + node)
    values = torch.randn(shape, generator=generator, device=on_gpu.device())
    return (values * 0.02).to(torch.bfloat16)


def model_job(million: int, scratch: int) -> Any:
    on_gpu.begin("lofi")
    node = lofi.stats()["node"]
    tensors = [weights_of(node, i, shape) for i, shape in enumerate(shapes(million))]
    before = 0
    if on_gpu.DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    average = lofi.finalize_average(tensors, scratch_bytes=scratch)
    peak = torch.cuda.max_memory_allocated() - before if on_gpu.DEVICE == "cuda" else 0
    wrong = []
    for index, tensor in enumerate(tensors):
        both = [weights_of(k, index, tuple(tensor.shape)).double() for k in range(2)]
        expected = truth.rounded((both[0] + both[1]) / 2, torch.bfloat16)
        small = expected.abs() < 2.0**-120  # subnormal: not by this rounding
        if not torch.equal(tensor[~small], expected[~small]):
            wrong.append(index)
    return wrong, peak, average.bytes_sent, average.seconds, sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("scratch", [SCRATCH, SCRATCH // 4])
def test_a_large_model(scratch, record_property):
    million = 1300 if on_gpu.DEVICE == "cuda" else 110
    for wrong, peak, sent, seconds, size in on_gpu.run(model_job, 4, million, scratch, timeout=400):
        assert not wrong
        assert peak <= scratch + SLACK
        assert sent <= 1.02 * size
        record_property(f"seconds_{scratch >> 20}_MiB", seconds)


def shards_job() -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    on_gpu.begin("lofi")
    node = lofi.stats()["node"]
    torch.manual_seed(0)
    model = torch.nn.Linear(300, 211).to(on_gpu.device())
    fully_shard(model, mesh=init_device_mesh(on_gpu.DEVICE, (2, 2), mesh_dim_names=("n", "r")))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(dist.get_rank())
    data = torch.randn(8, 300, generator=generator).to(on_gpu.device())
    model(data).square().mean().backward()
    optimizer.step()
    own = [parameter.to_local().clone() for parameter in model.parameters()]
    lofi.finalize_average(model)
    return node, [t.cpu() for t in own], [p.to_local().cpu() for p in model.parameters()]


def test_shards():
    results = on_gpu.run(shards_job, 4)
    for rank, (_, _, averaged) in enumerate(results):
        first, second = results[rank % 2][1], results[2 + rank % 2][1]
        for a, b, mean in zip(first, second, averaged, strict=True):
            assert torch.equal(mean, truth.mean([a, b]))
