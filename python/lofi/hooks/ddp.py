# SPDX-License-Identifier: MIT
"""DistributedDataParallel: when training begins, and which broadcasts are DDP's own.

DDP broadcasts from a fixed root: parameters in its constructor, buffers before or after a forward,
bucket sizes once, the final model in join(). They keep replicas equal, so that while nodes train
apart each node does them for itself, from the root's image. To the backend they look like a
script's broadcast of a batch; only the functions below tell them apart.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import distributed as torch_ddp

from lofi.groups import lookup
from lofi.job import events
from lofi.job.native import _C
from lofi.job.patch import not_compiled, when_imported, wrap
from lofi.job.phases import as_setup, by_wrapper, scope
from lofi.models import training

_BROADCAST_BUCKET_BYTES = 250 * 1024 * 1024  # as DDP's constructor


def install() -> None:
    ddp = torch_ddp.DistributedDataParallel
    wrap(ddp, "__init__", _init)
    wrap(ddp, "_pre_forward", _pre_forward)
    wrap(ddp, "_post_forward", _own_broadcasts)
    for hook in ("main_hook", "post_hook"):
        wrap(torch_ddp._DDPJoinHook, hook, _own_broadcasts)
    wrap(torch_ddp._DDPJoinHook, "__init__", _join_hook_init)
    when_imported(
        "torch._dynamo.eval_frame",
        lambda module: wrap(module.OptimizedModule, "__call__", _compiled_call),
    )


def _own_broadcasts(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():
        return original(self, *args, **kwargs)
    with by_wrapper():
        return original(self, *args, **kwargs)


def _pre_forward(original: Any, self: Any, *inputs: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():
        return original(self, *inputs, **kwargs)
    _begins(self)
    with by_wrapper():
        return original(self, *inputs, **kwargs)


def _compiled_call(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """torch.compile(model)(...): with optimize_ddp = "python_reducer" all of DDP's forward is
    compiled, so that no hook runs in it."""
    model = self._orig_mod
    if not torch.compiler.is_compiling() and isinstance(model, torch_ddp.DistributedDataParallel):
        _begins(model)
    return original(self, *args, **kwargs)


@not_compiled
def _begins(model: Any) -> None:
    if torch.is_grad_enabled() and lookup.backend_of(model.process_group) is not None:
        training.begins(model, model.require_backward_grad_sync)


def _join_hook_init(original: Any, self: Any, ddp: Any, *args: Any, **kwargs: Any) -> None:
    # In join() a rank without any input runs no forward, but it runs the collectives of the others.
    _begins(ddp)
    original(self, ddp, *args, **kwargs)


def _group_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The group of a call DDP(module, device_ids, output_device, dim, broadcast_buffers, init_sync,
    process_group, ...), without the module."""
    mesh = kwargs.get("device_mesh")
    if mesh is not None:
        return mesh.get_group(mesh_dim=0) if mesh.ndim == 1 else None
    return kwargs.get("process_group") or (args[5] if len(args) > 5 else None)


def _init(original: Any, self: Any, module: Any, *args: Any, **kwargs: Any) -> None:
    trains = training.state()
    group = _group_of(args, kwargs)
    trains.wrapped += 1
    if _C.phase() != "train" or lookup.backend_of(group) is None:
        original(self, module, *args, **kwargs)
        events.wrapped(self)
        return
    tensors = [*module.parameters(), *module.buffers()]
    trained = [tensor for tensor in tensors if trains.has(tensor)]
    if not trained:
        # All nodes start a new model from the same weights, as at setup.
        training.meet_for_new_tensors(group)
        with as_setup():
            original(self, module, *args, **kwargs)
            events.wrapped(self)
        return
    # The model has trained and is wrapped again: a broadcast over nodes would overwrite what all
    # nodes have learnt with the first one's weights. Tensors that are new to it still start equal.
    new = [tensor.detach() for tensor in tensors if not trains.has(tensor)]
    if new:
        training.meet_for_new_tensors(group)
        with as_setup(), torch.no_grad():
            pg = group or dist.group.WORLD
            dist._broadcast_coalesced(pg, new, _BROADCAST_BUCKET_BYTES, 0)
    with scope("node"), by_wrapper():
        original(self, module, *args, **kwargs)
