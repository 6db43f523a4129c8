# SPDX-License-Identifier: MIT
"""The tensors of a target: of a module, a state dict, an optimizer or a list."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lofi.groups import lookup
from lofi.job.native import _C
from lofi.models import packed, shards


@dataclass
class Item:
    """One tensor of a target."""

    name: str
    tensor: torch.Tensor  # what this rank holds of it: for a DTensor, its shard
    shape: tuple[int, ...]  # of the whole tensor
    is_shard: bool  # each rank of the node holds a part of its own
    is_parameter: bool  # not a buffer, which DDP lets differ inside a node
    is_code: bool = False  # of a quantised weight: compared, and never averaged

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def describe(self) -> str:
        """Name, dtype, shape and kind on one line: they must be equal in all nodes."""
        kind = " shard" if self.is_shard else ""
        where = "" if self.tensor.is_cpu else f" on {self.tensor.device.type}"
        return f"{self.name} {str(self.dtype)[6:]} {list(self.shape)}{kind}{where}"


def collect(target: Any) -> list[Item]:
    """The distinct tensors of a target, in its order; tied tensors once.

    TypeError for something that holds no tensors; ValueError for a tensor that can't be averaged.
    """
    items: list[Item] = []
    seen: set[tuple[Any, ...]] = set()
    for item in _items_of(target):
        local = item.tensor
        key = (local.data_ptr(), local.shape, local.stride(), local.dtype)
        if local.numel() and key in seen:
            continue
        seen.add(key)
        items.append(item)
    if not items:
        raise ValueError("lofi.finalize_average: the target holds no tensors")
    return items


def _items_of(target: Any) -> Iterator[Item]:
    for name, value in _named_tensors(target, ""):
        parts = packed.parts_of(value)
        if parts is None:
            yield _item(name, value)
        for end, part in parts or ():
            yield replace(_item(name + end, part), is_code=True)


_HOLDERS = (
    *(torch.Tensor, torch.nn.Module, torch.optim.Optimizer),
    *(torch.ScriptObject, Mapping, list, tuple),
)


def _named_tensors(target: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Tensors, and packed weights."""
    dot = f"{prefix}." if prefix else ""
    if isinstance(target, (torch.Tensor, torch.ScriptObject)):
        yield prefix or "tensor", target
    elif isinstance(target, torch.nn.Module):
        yield from named_tensors(target, prefix)
        yield from ((dot + name, value) for name, value in packed.of_modules(unwrap(target)))
    elif isinstance(target, torch.optim.Optimizer):
        for index, parameter in enumerate(_parameters_of(target)):
            for key, value in target.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    yield f"{dot}state.{index}.{key}", value
    elif isinstance(target, Mapping):
        for key, value in target.items():
            if isinstance(value, _HOLDERS):
                yield from _named_tensors(value, f"{dot}{key}")
    elif isinstance(target, Iterable) and not isinstance(target, (str, bytes)):
        for index, value in enumerate(target):
            if isinstance(value, _HOLDERS):
                yield from _named_tensors(value, f"{dot}{index}")
    else:
        raise TypeError(
            "lofi.finalize_average takes a module, a state dict, an optimizer or tensors, not "
            f"{type(target).__name__}"
        )


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def named_tensors(module: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by the names that they have without wrappers."""
    dot = f"{prefix}." if prefix else ""
    inner = unwrap(module)
    shards.reshard(inner)
    flat, views = shards.flat_parameters(inner)
    named = (pair for pair in inner.named_parameters() if id(pair[1]) not in views)
    for name, tensor in (*named, *flat.items(), *inner.named_buffers()):
        yield dot + plain_name(name), tensor


def plain_name(name: str) -> str:
    """A parameter's name without what FSDP1, checkpointing or torch.compile put into it."""
    for part in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."):
        name = name.replace(part, "")
    return name


def unwrap(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside DDP."""
    while isinstance(module, torch.nn.parallel.DistributedDataParallel):
        module = module.module
    return module


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """The values, contiguous, on the CPU: the tensor's own memory where it is that already."""
    return tensor.detach().to("cpu").contiguous()


def digest(tensor: torch.Tensor) -> bytes:
    """A fingerprint of the values, 16 bytes."""
    return _C.digest(on_host(tensor))


def digests_of(target: Any) -> dict[str, bytes]:
    """The fingerprint of each tensor, by name."""
    return {item.name: digest(item.tensor) for item in collect(target)}


def _item(name: str, tensor: torch.Tensor) -> Item:
    flat_shard = _is_fsdp1_shard(tensor)  # detach() forgets the class
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    # Parameters of one byte that can't be trained are codes that a library keeps the scales of.
    is_code = is_parameter and tensor.dtype in (torch.uint8, torch.int8)
    tensor = tensor.detach()
    if hasattr(tensor, "device_mesh") and hasattr(tensor, "placements"):
        return _dtensor_item(name, tensor, is_parameter)
    if tensor.is_meta:
        raise ValueError(f"lofi.finalize_average: {name} is on the meta device and has no values")
    if tensor.layout != torch.strided:
        raise ValueError(f"lofi.finalize_average: {name} is sparse; average its dense form")
    return Item(name, tensor, tuple(tensor.shape), flat_shard, is_parameter, is_code)


def _is_fsdp1_shard(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "_is_flat_param", False)  # as its isinstance looks for it


def _dtensor_item(name: str, tensor: Any, is_parameter: bool) -> Item:
    mesh, sharded = tensor.device_mesh, False
    for dim, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            continue
        if lookup.nodes_spanned(mesh.get_group(dim)) > 1:
            raise ValueError(
                f"lofi.finalize_average: {name} is sharded over nodes; each node must hold a whole "
                "replica"
            )
        if placement.is_partial():
            raise ValueError(f"lofi.finalize_average: {name} is a partial sum, not a value")
        sharded = True
    return Item(name, tensor.to_local(), tuple(tensor.shape), sharded, is_parameter)
