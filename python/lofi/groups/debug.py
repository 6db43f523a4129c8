# SPDX-License-Identifier: MIT
"""TORCH_DISTRIBUTED_DEBUG=DETAIL for inner backends."""

from typing import Any

from torch.distributed import distributed_c10d as c10d

# The original is kept here because a hook replaces it, to spare lofi's own groups (hooks/c10d.py).
_wrap = c10d._create_process_group_wrapper


def wrap_for_debug(inner: Any, name: str, store: Any, rank: int, size: int, timeout: Any) -> Any:
    """The inner backend in torch's wrapper, which checks every collective with all its ranks."""
    return _wrap(inner, name, store, rank, size, timeout)
