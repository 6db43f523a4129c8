# SPDX-License-Identifier: MIT
"""Tensors that lie inside something else: codes and scales of quantised weights.

The mean of codes is not the code of a mean, so that they are compared, but never averaged.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def parts_of(value: Any) -> list[tuple[str, torch.Tensor]] | None:
    """The plain tensors inside a quantised tensor, a tensor subclass or packed weights, each with
    the end of its name; None for everything else, and for DTensors."""
    if isinstance(value, torch.Tensor):
        if hasattr(value, "device_mesh"):
            return None
        if value.is_quantized:
            return list(_quantised(value))
        return list(_subclass(value)) if is_traceable_wrapper_subclass(value) else None
    if isinstance(value, torch.ScriptObject) and hasattr(value, "__getstate__"):
        return list(_inside(value.__getstate__(), ""))
    return None


def of_modules(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Packed weights, which are neither parameters nor buffers of the module that holds them."""
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.ScriptObject):
                yield f"{prefix}.{name}".lstrip("."), value


def _quantised(tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield ".codes", tensor.int_repr()
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        yield ".scale", torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)
    else:
        yield ".scales", tensor.q_per_channel_scales()
        yield ".zero_points", tensor.q_per_channel_zero_points()


def _subclass(tensor: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name in tensor.__tensor_flatten__()[0]:
        inner = getattr(tensor, name)
        for end, part in parts_of(inner) or [("", inner)]:
            yield f".{name}{end}", part


def _inside(state: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(state, torch.Tensor):
        for end, tensor in parts_of(state) or [("", state)]:
            yield name + end, tensor
    elif isinstance(state, (list, tuple)):
        for index, value in enumerate(state):
            yield from _inside(value, f"{name}.{index}")
