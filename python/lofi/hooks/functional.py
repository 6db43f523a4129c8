# SPDX-License-Identifier: MIT
"""The backward of torch.distributed.nn.functional.all_gather while nodes train apart.

Forward, each member gets the data of its images. Backward, it gets K times the local sum of the
gradients of its own slot. torch computes that sum with an all_to_all, or on gloo with a scatter
from every member; here the same code runs on the node's group, on the slots of the node's members.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from lofi.groups import lookup, node_group
from lofi.job.patch import when_imported, wrap


def install() -> None:
    when_imported("torch.distributed.nn.functional", _install)


def _install(module: Any) -> None:
    wrap(module._AlltoAll, "forward", _all_to_all)
    wrap(module._AllGather, "backward", _all_gather_backward)
    wrap(module._AllGatherBase, "backward", _all_gather_base_backward)


def _all_to_all(original: Any, ctx: Any, group: Any, outs: Any, *tensors: torch.Tensor) -> Any:
    """On a group that calls itself gloo, as the launcher's do, torch scatters from every member,
    and passes a member's rank for a global one: wrong on every node's group but the first."""
    if lookup.backend_of(group) is None:
        return original(ctx, group, outs, *tensors)
    ctx.group = group
    ctx.input_tensor_size_list = [tensor.size() for tensor in tensors]
    dist.all_to_all(outs, [tensor.contiguous() for tensor in tensors], group=group)
    return tuple(outs)


def _all_gather_backward(original: Any, ctx: Any, *grads: torch.Tensor) -> Any:
    lofi_group = lookup.mirrored(ctx.group)
    if lofi_group is None:
        return original(ctx, *grads)
    local = SimpleNamespace(group=node_group.of(ctx.group))
    nothing, grad = original(local, *(grads[rank] for rank in lookup.local_members(lofi_group)))
    return nothing, grad * lofi_group.node_count


def _all_gather_base_backward(original: Any, ctx: Any, grad: torch.Tensor) -> Any:
    lofi_group = lookup.mirrored(ctx.group)
    if lofi_group is None:
        return original(ctx, grad)
    slots = grad.chunk(dist.get_world_size(ctx.group))
    local = SimpleNamespace(group=node_group.of(ctx.group))
    mine = torch.cat([slots[rank] for rank in lookup.local_members(lofi_group)])
    nothing, grad, none = original(local, mine)
    return nothing, grad * lofi_group.node_count, none
