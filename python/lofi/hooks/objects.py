# SPDX-License-Identifier: MIT
"""broadcast_object_list that belongs to the node while nodes train apart.

Only the root pickles its objects; an image of the root, which sends inside its own node, would not
know that it has to. So the function runs on the node's part of the group, from the root's place.
"""

from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from lofi.groups import lookup, node_group, sites
from lofi.job import job
from lofi.job.native import _C
from lofi.job.patch import wrap


def install() -> None:
    original = c10d.broadcast_object_list
    wrap(c10d, "broadcast_object_list", _broadcast)
    if dist.broadcast_object_list is original:  # torch's own second name for it
        dist.broadcast_object_list = c10d.broadcast_object_list


def _belongs_to_node() -> bool:
    if _C.issuer() == _C.BY_WRAPPER:
        return True
    return sites.is_listed(job.current().settings.node_broadcasts)


def _broadcast(
    original: Any,
    object_list: list[Any],
    src: int | None = None,
    group: Any = None,
    device: Any = None,
    group_src: int | None = None,
    **others: Any,
) -> None:
    lofi_group = lookup.mirrored(group)
    if lofi_group is None or not _belongs_to_node():
        original(object_list, src, group, device, group_src, **others)
        return
    if group_src is None:
        whole = group or dist.group.WORLD
        group_src = dist.get_group_rank(whole, src or 0)
    root = lofi_group.place(group_src)
    original(object_list, None, node_group.of(group), device, root, **others)
