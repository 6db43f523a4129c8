# SPDX-License-Identifier: MIT
"""The kernel of the mean on a GPU against the one on the CPU, which tests/c prove."""

from typing import Any

import on_gpu
import pytest
import torch

pytestmark = [on_gpu.needs_gpu, on_gpu.cuda_only]

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8,
]  # fmt: skip


def pieces_of(dtype: torch.dtype, inputs: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    shape = (inputs, count)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=dtype)
    wild = torch.exp2(torch.randint(-40, 15, shape, generator=generator).double())
    values = (torch.randn(shape, generator=generator, dtype=torch.float64) * wild).to(dtype)
    special = torch.tensor([float("inf"), float("nan"), 0.0, -0.0]).to(dtype)
    if count > 100:
        values[:, :4] = special
    return values


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """As bytes, with one NaN for all."""
    if tensor.is_floating_point():
        nan = tensor.float().isnan()
        plain = tensor.view(torch.uint8).view(-1, tensor.element_size()).clone()
        plain[nan] = 255
        return plain
    return tensor


def means_job() -> list[str]:
    from lofi.job.native import _C

    torch.cuda.set_device(0)
    wrong = []
    for dtype in DTYPES:
        for inputs, count in ((1, 7), (2, 1), (2, 100_003), (3, 4096), (9, 70_001)):
            for weights in (None, [0.5] * inputs, [1.0 + 0.3 * i for i in range(inputs)]):
                values = pieces_of(dtype, inputs, count)
                expected = torch.empty(count, dtype=dtype)
                _C.mean(expected, list(values), weights)
                for offset in (0, 1):  # aligned to 16 bytes, and not
                    held = torch.empty(inputs * count + offset, dtype=dtype, device="cuda")
                    given = held[offset:].view(inputs, count)
                    given.copy_(values)
                    out = torch.empty(count + offset, dtype=dtype, device="cuda")[offset:]
                    stream = torch.cuda.current_stream().cuda_stream
                    _C.cuda_mean(out, given, weights, stream)
                    if not torch.equal(bits(out.cpu()), bits(expected)):
                        wrong.append(f"{dtype} {inputs} x {count} {weights} offset {offset}")
    return wrong


def test_bits_of_the_cpu():
    (wrong,) = on_gpu.run(means_job, 1, node_size=1)
    assert not wrong


def large_job() -> Any:
    """More than 2^31 elements, on a stream of its own, and in place."""
    from lofi.job.native import _C

    torch.cuda.set_device(0)
    free, _ = torch.cuda.mem_get_info()
    count = 2**31 + 12_345
    if free < 3 * count:
        return "too little memory"
    values = torch.zeros((2, count), dtype=torch.float8_e5m2, device="cuda")
    values.view(torch.uint8)[1, -3:] = (
        torch.tensor([2.0] * 3).to(torch.float8_e5m2).view(torch.uint8).cuda()
    )
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    _C.cuda_mean(values[0], values, None, stream.cuda_stream)
    stream.synchronize()
    return values[0, -5:].float().tolist()


def test_more_than_two_to_the_31():
    (seen,) = on_gpu.run(large_job, 1, node_size=1)
    if isinstance(seen, str):
        pytest.skip(seen)
    assert seen == [0.0, 0.0, 1.0, 1.0, 1.0]


def graph_job() -> list[float]:
    from lofi.job.native import _C

    torch.cuda.set_device(0)
    values = torch.zeros((2, 1000), device="cuda")
    out = torch.zeros(1000, device="cuda")
    _C.cuda_mean(out, values, None, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _C.cuda_mean(out, values, None, torch.cuda.current_stream().cuda_stream)
    seen = []
    for number in range(3):
        values[1] = float(number)
        graph.replay()
        seen.append(out[999].item())
    return seen


def test_in_a_graph():
    assert on_gpu.run(graph_job, 1, node_size=1) == [[0.0, 0.5, 1.0]]


def refused_job() -> list[str]:
    from lofi.job.native import _C

    torch.cuda.set_device(0)
    told = []
    on_host, there = torch.zeros(2, 3), torch.zeros(3, device="cuda")
    for out, pieces, weights in (
        (there, on_host, None),
        (on_host[0], on_host, None),
        (there, torch.zeros(2, 3, device="cuda"), [1.0, -1.0]),
    ):
        try:
            _C.cuda_mean(out, pieces, weights, 0)
            told.append("")
        except ValueError as error:
            told.append(str(error))
    return told


def test_refusals():
    (told,) = on_gpu.run(refused_job, 1, node_size=1)
    assert all(told), told
