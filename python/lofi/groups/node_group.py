# SPDX-License-Identifier: MIT
"""A ProcessGroup of the members of a group that lie in this node, for code that takes a group."""

import weakref
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from lofi.groups import lookup

MARK = ":lofi_node"  # in the names of these groups
_made: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()


def of(group: Any) -> Any:
    """The node's part of `group` as a group of its own; made once. Collective over that part.

    It has a name of its own rather than a number from new_group's count: a group that only some
    nodes make must not shift the names of later ones.
    """
    group = group or dist.group.WORLD
    known = _made.get(group)
    if known is not None:
        return known
    lofi_group = lookup.backend_of(group).source.group
    node = lofi_group.node_of(lofi_group.rank)
    members = lookup.local_members(lofi_group)
    ranks = [lofi_group.global_rank(member) for member in members]
    backend, _ = c10d._world.pg_map[group]
    made, _ = c10d._new_process_group_helper(
        len(ranks),
        members.index(lofi_group.rank),
        ranks,
        backend,
        c10d._get_default_store(),
        f"{group.group_name}{MARK}{lofi_group.node_number(node)}",
        timeout=c10d._get_default_timeout(backend),
        group_desc="lofi_node",
    )
    c10d._world.pg_group_ranks[made] = {rank: index for index, rank in enumerate(ranks)}
    _made[group] = made
    return made
