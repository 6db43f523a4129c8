# SPDX-License-Identifier: MIT
"""liblofi's communicator in shared memory, without torch, for benchmarks: what the layers above it
cost."""

import ctypes
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from harness.liblofi import Liblofi  # noqa: E402

LIBRARY = ROOT / "build/gcc/liblofi.so"  # of `make test-c`, for programs of C
_DTYPES = {torch.float32: 1, torch.bfloat16: 3}  # lofi_dtype
_SUM = 0  # lofi_op


class Communicator:
    """A communicator of all ranks of the job."""

    def __init__(self) -> None:
        self._lib = Liblofi()
        store = dist.PrefixStore("bench/liblofi", c10d._get_default_store())
        self._comm: Any = self._lib.comm(store, dist.get_rank(), dist.get_world_size())
        self._all_reduce = self._lib.library.lofi_all_reduce
        self._all_reduce.argtypes = (
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_size_t, ctypes.c_int, ctypes.c_int),
        )

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """The sum, in place."""
        data, count, dtype = tensor.data_ptr(), tensor.numel(), _DTYPES[tensor.dtype]
        self._lib.check(self._all_reduce(self._comm, data, data, count, dtype, _SUM))

    def destroy(self) -> None:
        self._lib.library.lofi_comm_destroy(self._comm)
