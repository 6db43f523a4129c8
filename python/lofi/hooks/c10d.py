# SPDX-License-Identifier: MIT
"""Groups: torch's debug wrapper, its flight recorder, and groups that are not lofi's."""

import itertools
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from lofi.groups import lookup
from lofi.job.log import log
from lofi.job.native import _C
from lofi.job.patch import wrap

_hook_ids = itertools.count(7_001)


def install() -> None:
    # gloo and NCCL record their own collectives, and BackendComm those through shared memory.
    # torch's hook would record all of them once more.
    recording: set[str] = getattr(c10d, "_FR_SELF_RECORDING_BACKENDS", set())
    recording.add("lofi")
    wrap(c10d, "_create_process_group_wrapper", _wrap_unless_lofi)
    wrap(c10d, "_new_process_group_helper", _watch_bypass)


def _wrap_unless_lofi(original: Any, wrapped_pg: Any, *args: Any, **kwargs: Any) -> Any:
    # The wrapper would check every collective with the whole group, across nodes, and wait for
    # them; lofi's inner backends are wrapped one by one instead.
    if isinstance(wrapped_pg, _C.BackendLofi):
        return wrapped_pg
    return original(wrapped_pg, *args, **kwargs)


def _watch_bypass(
    original: Any, size: int, rank: Any, global_ranks: list[int], *args: Any, **kwargs: Any
) -> Any:
    result = original(size, rank, global_ranks, *args, **kwargs)
    group = result[0]
    nodes = lookup.nodes_of(global_ranks)  # of a default group the list is empty
    if isinstance(group, dist.ProcessGroup) and nodes > 1 and lookup.backend_of(group) is None:
        _count_bypass(group, nodes)
    return result


def _count_bypass(group: Any, nodes: int) -> None:
    backend = dist.get_backend(group)
    log(
        "warn" if group.rank() == 0 else "info",  # once a group, not from each rank
        f"a group of backend {backend!r} spans {nodes} nodes: its "
        "collectives cross nodes and are not lofi's (stats() counts them as bypass). Use backend "
        '"lofi" for it to stay inside the node while training',
    )
    _C.count(_C.SCOPE_WORLD, _C.FOR_BYPASS, 0)
    if hasattr(group, "register_pre_hook"):  # torch >= 2.14; before, the group counts as one
        group.register_pre_hook(
            next(_hook_ids), lambda *_: _C.count(_C.SCOPE_WORLD, _C.FOR_BYPASS, 0)
        )
