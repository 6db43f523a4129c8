# SPDX-License-Identifier: MIT
"""Quantised weights, whose codes lie in packed objects: compared by the average, never averaged."""

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import truth
from harness.rank_jobs import job, raised, run_nodes
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")


def _per_channel(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    scales, zeros = torch.rand(3) + 0.1, torch.zeros(3, dtype=torch.long)
    return torch.quantize_per_channel(torch.randn(3, 4), scales, zeros, 0, torch.qint8)


def _dynamic(seed: int) -> nn.Module:
    """Wholly quantised: no parameter is left."""
    torch.manual_seed(seed)
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), {nn.Linear})


class _Codes(nn.Module):
    """As libraries keep weights of 8 or 4 bits: a parameter that can't be trained."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        codes = torch.randint(0, 256, (4, 3), dtype=torch.uint8)
        self.weight = nn.Parameter(codes, requires_grad=False)


def _target(kind: str, seed: int) -> Any:
    if kind == "per tensor":
        return [torch.quantize_per_tensor(torch.ones(5), 0.1 + seed, 0, torch.quint8)]
    if kind == "per channel":
        return {"w": _per_channel(seed)}
    if kind == "state dict":
        return _dynamic(seed).state_dict()
    if kind == "subclass":
        return [TwoTensor(torch.full((3,), float(seed)), torch.ones(3))]
    return {"model": _dynamic, "codes": _Codes}[kind](seed)


def _average(kind: str, apart: bool) -> Any:
    import lofi

    with job():
        node = dist.get_rank() // 2
        quantised = _target(kind, node if apart else 0)
        trained = torch.full((3,), float(node))
        error = raised(lofi.finalize_average, [quantised, trained]) if apart else None
        if not apart:
            lofi.finalize_average([quantised, trained])
        return error, trained


KINDS = {
    "model": "_packed_params._packed_params.0.0.codes",
    "state dict": "_packed_params._packed_params",
    "per tensor": "0.0.codes",
    "per channel": "w.codes",
    "subclass": "0.0.a",
    "codes": "weight",
}


@pytest.mark.parametrize("kind", KINDS)
def test_codes_that_differ_are_refused_by_name(kind):
    for rank, (error, trained) in enumerate(run_nodes(_average, kind, True)):
        assert error.type == "ValueError", error
        assert KINDS[kind] in error.text and "quantised" in error.text
        assert torch.equal(trained, torch.full((3,), float(rank // 2)))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_codes_stay_and_the_rest_is_averaged(kind):
    want = truth.mean([torch.zeros(3), torch.ones(3)])
    for _, trained in run_nodes(_average, kind, False):
        assert torch.equal(trained, want)
