# SPDX-License-Identifier: MIT
"""finalize_average of tensors on a GPU, without one: the path of a GPU with tensors of the CPU.

NCCL is a double, and so is lofi_cuda_mean (tests/c has its arithmetic). What is left is
what is tested: which pieces go where, in which order, in how much scratch.
"""

import contextlib
from types import SimpleNamespace
from typing import Any

import lofi
import pytest
import torch
import torch.distributed as dist
from harness import mocked, truth
from harness.ranks import run_ranks
from lofi.average import device, exchange
from lofi.job.native import _C
from test_average import Model, _leaves, tensors

STREAM = 0x5742


@pytest.fixture(scope="module")
def mock():
    return mocked.build()


class NoGpu(device.Gpu):
    """Takes tensors on the CPU for tensors on a GPU."""

    has_kernel = True

    def __init__(self, is_built: bool):
        self.is_built = is_built
        self.means = 0

    def holds(self, tensor: torch.Tensor) -> bool:
        return True

    def kernel(self, out: Any, pieces: Any, weights: list[float], stream: int) -> None:
        assert stream == STREAM
        if not self.is_built:
            raise NotImplementedError("no code for this GPU")
        self.means += 1
        _C.mean(out, list(pieces), weights)


def pretend(path: Any, is_built: bool = True) -> NoGpu:
    mocked.install(path)
    torch.cuda.device = contextlib.nullcontext
    torch.cuda.current_stream = lambda: SimpleNamespace(cuda_stream=STREAM)
    device.gpu = NoGpu(is_built)
    return device.gpu


def average_job(path: Any, dtype: torch.dtype, scratch: int, weights: Any, is_built: bool) -> Any:
    gpu = pretend(path, is_built)
    exchange.tuning.scratch_least = 1
    dist.init_process_group("lofi")
    node = lofi.stats()["node"]
    state = tensors(node, dtype)
    lofi.finalize_average(state, weight=weights[node], scratch_bytes=scratch)
    return _leaves(state), gpu.means


@pytest.mark.parametrize(
    ("nodes", "ranks", "dtype", "scratch", "weights", "is_built"),
    [
        (2, 2, torch.float32, 3000, None, True),
        (2, 1, torch.bfloat16, 1 << 20, None, True),
        (3, 1, torch.float16, 1500, [1.0, 2.5, 0.1], True),
        (2, 3, torch.float64, 9000, None, True),
        (2, 2, torch.bfloat16, 2000, [3.0, 0.3], False),
    ],
)
def test_bit_equal_to_the_exact_mean(mock, nodes, ranks, dtype, scratch, weights, is_built):
    used = weights or [1.0] * nodes
    env = {"LOFI_NODE_SIZE": str(ranks)}
    results = run_ranks(average_job, nodes * ranks, mock, dtype, scratch, used, is_built, env=env)
    expected = [_leaves(tensors(node, dtype)) for node in range(nodes)]
    for index, values in enumerate(zip(*expected, strict=True)):
        mean = truth.mean(list(values), used)
        for rank, (state, means) in enumerate(results):
            assert torch.equal(state[index], mean), (rank, index)
            assert (means > 0) == is_built


def model_job(path: Any) -> Any:
    pretend(path)
    dist.init_process_group("lofi")
    model = Model(lofi.stats()["node"], dist.get_rank())
    own = {k: v.clone() for k, v in model.state_dict().items()}
    average = lofi.finalize_average(model)
    return own, model.state_dict(), average


def test_a_model_with_everything(mock):
    """Buffers that differ inside of a node go by way of the host, the others do not."""
    results = run_ranks(model_job, 4, mock, env={"LOFI_NODE_SIZE": "2"})
    first, second = results[0][0], results[2][0]
    for _, state, average in results:
        for name in ("tied.weight", "head.bias", "conv.weight", "statistics"):
            assert torch.equal(state[name], truth.mean([first[name], second[name]], [1.0, 1.0]))
        wave = [torch.view_as_real(own["wave"]) for own in (first, second)]
        assert torch.equal(torch.view_as_real(state["wave"]), truth.mean(wave, [1.0, 1.0]))
        for name in ("steps", "flags", "frozen", "mask"):
            assert torch.equal(state[name], first[name])
        assert average.tensors == 11 and average.bytes_sent < 20_000


def left_out_job(path: Any) -> Any:
    pretend(path)
    dist.init_process_group("lofi")
    node = lofi.stats()["node"]
    weights = torch.full((300,), float(node))
    if node == 1:
        weights[299] = float("nan")
    average = lofi.finalize_average([weights])
    return average.nodes, weights


def test_a_node_that_is_not_finite(mock):
    results = run_ranks(left_out_job, 3, mock, env={"LOFI_NODE_SIZE": "1"})
    for nodes, weights in results:
        assert nodes == [0, 2] and torch.equal(weights, torch.ones(300))


def scratch_job(path: Any, scratch: int) -> Any:
    pretend(path)
    made = []

    class Slot(exchange.Slot):
        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            made.append(self.nbytes)

    exchange.tuning.slot = Slot
    dist.init_process_group("lofi")
    weights = torch.full((3_000_001,), float(lofi.stats()["node"]))
    lofi.finalize_average([weights], scratch_bytes=scratch)
    assert torch.equal(weights, torch.full_like(weights, 0.5))
    return made


@pytest.mark.parametrize("scratch", [1 << 20, 5 << 20, 1 << 28])
def test_scratch_is_bounded(mock, scratch):
    for slots in run_ranks(scratch_job, 4, mock, scratch, env={"LOFI_NODE_SIZE": "2"}):
        assert len(slots) <= exchange.tuning.slots and sum(slots) <= scratch
        if scratch < 6 << 20:  # else the row is shorter
            assert sum(slots) > 0.9 * scratch


def bad_job() -> list[str]:
    dist.init_process_group("lofi")
    told = []
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    for target, how in (
        (model, {}),
        ([torch.ones(2)], {"scratch_bytes": 1000}),
        ([torch.ones(2)], {"scratch_bytes": (1 << 20) + dist.get_rank()}),
    ):
        try:
            lofi.finalize_average(target, **how)
            told.append("")
        except ValueError as error:
            told.append(str(error))
    return told


def test_what_is_refused():
    for meta, small, different in run_ranks(bad_job, 2, env={"LOFI_NODE_SIZE": "1"}):
        assert "weight is on the meta device" in meta
        assert "less than 1 MiB" in small
        assert "scratch_bytes 1048576, node 1 has scratch_bytes 1048577" in different
