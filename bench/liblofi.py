# SPDX-License-Identifier: MIT
"""liblofi's C API by ctypes, for benchmarks: what the layers above it cost."""

import ctypes
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "build/gcc/liblofi.so"  # of `make test-c`

_DTYPES = {torch.float32: 1, torch.bfloat16: 3}  # lofi_dtype
_SUM = 0  # lofi_op
_AllGather = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
)


class _CommOptions(ctypes.Structure):
    """lofi_comm_options, as far as shared memory reads it."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("transport", ctypes.c_char_p),
        ("rank", ctypes.c_int),
        ("rank_count", ctypes.c_int),
        ("timeout_ms", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("labels", ctypes.c_void_p),
        ("slot_bytes", ctypes.c_size_t),
    )


class Communicator:
    """A communicator in shared memory of the ranks of a process group."""

    def __init__(self, group: Any):
        self._group = group
        self._lib = ctypes.CDLL(str(LIBRARY))
        self._lib.lofi_last_error.restype = ctypes.c_char_p
        self._lib.lofi_all_reduce.argtypes = (
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p),
            *(ctypes.c_size_t, ctypes.c_int, ctypes.c_int),
        )
        all_gather = _AllGather(self._all_gather)
        options = _CommOptions(
            ctypes.sizeof(_CommOptions), b"shm", dist.get_rank(), dist.get_world_size(), 60_000
        )
        self._comm = ctypes.c_void_p()
        made = self._lib.lofi_comm_create(
            ctypes.byref(options), all_gather, None, ctypes.byref(self._comm)
        )
        self._check(made)

    def _all_gather(self, _: Any, mine: int, size: int, everyone: int) -> int:
        box = torch.frombuffer(bytearray(ctypes.string_at(mine, size)), dtype=torch.uint8)
        whole = torch.empty(size * dist.get_world_size(), dtype=torch.uint8)
        dist.all_gather_into_tensor(whole, box, group=self._group)
        ctypes.memmove(everyone, whole.data_ptr(), whole.numel())
        return 0

    def _check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(self._lib.lofi_last_error().decode())

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """The sum, in place."""
        data, count, dtype = tensor.data_ptr(), tensor.numel(), _DTYPES[tensor.dtype]
        self._check(self._lib.lofi_all_reduce(self._comm, data, data, count, dtype, _SUM))

    def destroy(self) -> None:
        self._lib.lofi_comm_destroy(self._comm)
