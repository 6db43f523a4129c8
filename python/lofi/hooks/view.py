# SPDX-License-Identifier: MIT
"""Code that takes its node for the world while nodes train apart (LOFI_NODE_CALLS).

A listed place that names no group, or the world, gets the node's group: get_world_size() is L,
get_rank() the place, and a root is given by place, too. A contrastive loss sees its node's features
once, and a library that decides something on rank 0 decides it in each node.

torch.distributed asks one function for the default group, whatever name a script imported, so that
this one is replaced; only where the setting is used, since it looks at the stack.
"""

import functools
import sys
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from lofi.groups import lookup, node_group, sites
from lofi.job import events, job
from lofi.job.patch import wrap


def install() -> None:
    events.begun.subscribe(_begun)
    _begun()  # the first job has begun by now


def _begun() -> None:
    here = job.current()
    if here.spans_nodes and here.settings.node_calls:
        _watch()


@functools.cache
def _watch() -> None:
    wrap(c10d, "_get_default_group", _default_group)
    wrap(c10d, "_canonicalize_group_rank", _group_rank)


def sees_node(frame: FrameType | None) -> bool:
    """Whether collectives are mirrored now, and `frame` was called from a listed place."""
    here = job.current()
    if not here.spans_nodes or not here.settings.node_calls or lookup.mirrored(None) is None:
        return False
    return sites.is_listed(sites.direct_call_site(frame), here.settings.node_calls)


def _default_group(original: Any) -> Any:
    asker, world = sys._getframe(2), original()
    # Those that put the default group in place of a missing one have it in a variable `group`.
    if asker.f_locals.get("group", asker) not in (None, world):
        return world
    return node_group.of(world) if sees_node(asker) else world


def _group_rank(
    original: Any,
    group: Any,
    global_rank: int | None = None,
    group_rank: int | None = None,
    return_global: bool = False,
) -> int:
    """A rank that listed code gives is one in its node."""
    if global_rank is None or not sees_node(sys._getframe(2)):
        return original(group, global_rank, group_rank, return_global)
    if group is not node_group.of(dist.group.WORLD):
        return original(group, global_rank, group_rank, return_global)
    if not 0 <= global_rank < group.size():
        raise ValueError(
            f"lofi: rank {global_rank} is named by code that LOFI_NODE_CALLS lets see its node as "
            f"the world: there are ranks 0 to {group.size() - 1}"
        )
    return original(group, None, global_rank, return_global)
