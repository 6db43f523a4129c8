# SPDX-License-Identifier: MIT
"""liblofi's C API by ctypes, as a program of C sees it, for tests and benchmarks."""

import ctypes
from typing import Any


class CommOptions(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("transport", ctypes.c_char_p),
        ("rank", ctypes.c_int),
        ("rank_count", ctypes.c_int),
        ("timeout_ms", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("labels", ctypes.c_void_p),
        ("slot_bytes", ctypes.c_size_t),
        ("host", ctypes.c_void_p),
        ("device", ctypes.c_int),
        ("stream", ctypes.c_void_p),
        ("parent", ctypes.c_void_p),
        ("color", ctypes.c_int),
    ]


AllGather = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
)


class Liblofi:
    """The library that lofi._C is linked with."""

    def __init__(self) -> None:
        from lofi import _C

        self.library = ctypes.CDLL(_C.__file__)
        self.library.lofi_last_error.restype = ctypes.c_char_p

    def check(self, status: int) -> None:
        assert status == 0, self.library.lofi_last_error().decode()

    def comm(self, store: Any, rank: int, size: int) -> Any:
        """A communicator of the ranks that share the store: in shared memory, or of this one."""
        calls = [0]

        def all_gather(_: Any, mine: int, count: int, every: int) -> int:
            calls[0] += 1
            store.set(f"{calls[0]}/{rank}", ctypes.string_at(mine, count))
            words = [store.get(f"{calls[0]}/{other}") for other in range(size)]
            ctypes.memmove(every, b"".join(words), count * size)
            return 0

        transport = b"shm" if size > 1 else b"self"
        options = CommOptions(
            ctypes.sizeof(CommOptions), transport, rank, size, 20_000, None, None, 0, None, -1
        )
        made = ctypes.c_void_p()
        self.check(
            self.library.lofi_comm_create(
                ctypes.byref(options), AllGather(all_gather), None, ctypes.byref(made)
            )
        )
        return made
