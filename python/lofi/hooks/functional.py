# SPDX-License-Identifier: MIT
"""The backward of torch.distributed.nn.functional.all_gather while nodes train apart.

Forward, the slots of a member's images hold its own data, so that its gradient is the sum over
all of them, and over the ranks of its node: the derivative of what the node computes. (K times the
gradient of its own slot would be the same only for a loss that takes all slots alike; a contrastive
loss has its targets in one of them.) torch computes the sum over ranks with an all_to_all, or on
gloo with a scatter from every member; here the same code runs on the node's group.
"""

from collections.abc import Sequence
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
    wrap(module._AllGatherBase, "forward", _all_gather_base_forward)
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


def _sum_over_nodes(lofi_group: Any, slots: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """For each place, the sum of the slots of the members that have it."""
    nodes, places = range(lofi_group.node_count), range(lofi_group.local_size)
    return [
        torch.stack([slots[lofi_group.member(node, place)] for node in nodes]).sum(0)
        for place in places
    ]


def _all_gather_backward(original: Any, ctx: Any, *grads: torch.Tensor) -> Any:
    lofi_group = lookup.mirrored(ctx.group)
    if lofi_group is None:
        return original(ctx, *grads)
    local = SimpleNamespace(group=node_group.of(ctx.group))
    if len(grads) == lofi_group.local_size:  # of code that took its node for the world
        return original(local, *grads)
    return original(local, *_sum_over_nodes(lofi_group, grads))


def _all_gather_base_forward(
    original: Any, ctx: Any, output: torch.Tensor, given: torch.Tensor, group: Any
) -> Any:
    ctx.lofi_slots = output.numel() // max(given.numel(), 1)
    return original(ctx, output, given, group)


def _all_gather_base_backward(original: Any, ctx: Any, grad: torch.Tensor) -> Any:
    lofi_group = lookup.mirrored(ctx.group)
    if lofi_group is None:
        return original(ctx, grad)
    local = SimpleNamespace(group=node_group.of(ctx.group))
    if ctx.lofi_slots == lofi_group.local_size:
        return original(local, grad)
    slots = grad.chunk(dist.get_world_size(ctx.group))
    return original(local, torch.cat(_sum_over_nodes(lofi_group, slots)))
