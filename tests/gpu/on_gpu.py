# SPDX-License-Identifier: MIT
"""Ranks that share one GPU: NCCL takes each for a machine of its own, and goes through loopback.

LOFI_TEST_DEVICE=cpu runs what can run of these tests on the CPU, against gloo: to test the tests.
"""

import os
from collections.abc import Callable
from typing import Any

import lofi  # noqa: F401 - known by its name also where it is not installed
import pytest
import torch
import torch.distributed as dist
from harness.ranks import Failed, run_ranks

__all__ = ["DEVICE", "REFERENCE", "Failed", "begin", "cuda_only", "device", "needs_gpu", "run"]

# Ranks are forks: to ask for a GPU must not start CUDA in their parent.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
DEVICE = os.environ.get("LOFI_TEST_DEVICE", "cuda")
REFERENCE = {"cuda": "nccl", "cpu": "gloo"}[DEVICE]


def _why_not() -> str:
    if DEVICE == "cpu":
        return ""
    if not dist.is_nccl_available():
        return "this torch has no NCCL"
    if not torch.cuda.is_available():
        return "no CUDA GPU here; ci/gpu runs these on a machine with one"
    return ""


needs_gpu = pytest.mark.skipif(bool(_why_not()), reason=_why_not())
cuda_only = pytest.mark.skipif(DEVICE != "cuda", reason="says nothing on the CPU")


def device() -> torch.device:
    return torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device("cpu")


def begin(backend: str, **how: Any) -> int:
    """In a rank: the process group, on the one GPU. Returns the rank."""
    if DEVICE == "cuda":
        torch.cuda.set_device(0)
        torch.use_deterministic_algorithms(True)
    dist.init_process_group(backend, **how)
    return dist.get_rank()


def run(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    node_size: int = 2,
    timeout: float = 240.0,
    env: dict[str, str] | None = None,
    may_fail: bool = False,
) -> list[Any]:
    """function(*args) in ranks of one GPU, in nodes of `node_size`."""
    variables = {
        "LOFI_NODE_SIZE": str(node_size),
        "NCCL_SOCKET_IFNAME": "lo",
        "NCCL_IB_DISABLE": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        **(env or {}),
    }
    return run_ranks(
        function,
        world_size,
        *args,
        env=variables,
        rank_env=lambda rank: {"NCCL_HOSTID": f"host{rank}", "LOCAL_RANK": "0"},
        timeout=timeout,
        may_fail=may_fail,
    )
