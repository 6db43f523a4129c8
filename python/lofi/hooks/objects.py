# SPDX-License-Identifier: MIT
"""broadcast_object_list of a library, which belongs to the node while nodes train apart.

Only the root pickles its objects; an image of the root, which sends inside its own node, would not
know that it has to. So the function runs on the node's part of the group, from the root's place.
"""

import sys
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from lofi.groups import lookup, node_group
from lofi.hooks import view
from lofi.job.native import _C
from lofi.job.patch import wrap


def install() -> None:
    original = c10d.broadcast_object_list
    wrap(c10d, "broadcast_object_list", _broadcast)
    if dist.broadcast_object_list is original:  # torch's own second name for it
        dist.broadcast_object_list = c10d.broadcast_object_list


def _broadcast(
    original: Any,
    object_list: list[Any],
    src: int | None = None,
    group: Any = None,
    device: Any = None,
    group_src: int | None = None,
    **others: Any,
) -> None:
    lofi_group, whole = lookup.mirrored(group), group or dist.group.WORLD
    if whole is dist.group.WORLD and view.sees_node(sys._getframe(2)):
        root = src if group_src is None else group_src  # a place already
        original(object_list, None, node_group.of(whole), device, root or 0, **others)
    elif lofi_group is not None and _C.issuer() == _C.BY_WRAPPER:
        root = dist.get_group_rank(whole, src or 0) if group_src is None else group_src
        place = lofi_group.place(root)
        original(object_list, None, node_group.of(whole), device, place, **others)
    else:
        original(object_list, src, group, device, group_src, **others)
