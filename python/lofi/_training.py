# SPDX-License-Identifier: MIT
"""The moment at which nodes begin to train apart, and what is remembered of it."""

import os
from typing import Any

import torch

from lofi import _implicit, _world
from lofi._log import log
from lofi._native import _C
from lofi._targets import digests_of, named_tensors


def begins(model: torch.nn.Module) -> None:
    """A wrapped model runs a forward with gradients. Cheap after the first time."""
    world = _world.current()
    if model not in world.trained_models:
        if world.spans_nodes:
            world.trained_models[model] = _first_digests(world, model)
        else:
            world.trained_models[model] = {}
        _keep(model)
    if _C.phase() in ("setup", "done"):
        log("info", f"training begins with {type(model).__name__}: nodes train apart")
        _C.event(_C.EVENT_TRAIN)


def _first_digests(world: _world.World, model: torch.nn.Module) -> dict[str, bytes]:
    """What the model's training begins with; a model that is wrapped again has begun before."""
    digests = digests_of(model)
    for name, tensor in named_tensors(model):
        began = world.remember_trained(tensor, digests.get(name, b""))
        if name in digests:  # tied tensors have one name there
            digests[name] = began
    return digests


# Under the launcher, models must live until the average at the end, also when the function that
# made them has returned.
_kept: list[torch.nn.Module] | None = None


def keep_models_alive() -> None:
    global _kept
    _kept = []


def _keep(model: torch.nn.Module) -> None:
    if _kept is None:
        return
    tensors = {id(tensor) for tensor in model.parameters()}
    # A model that is wrapped again replaces its former wrapper.
    _kept[:] = [m for m in _kept if not any(id(t) in tensors for t in m.parameters())]
    _kept.append(model)


def what_trained() -> Any:
    """What the launcher averages at the end: the wrapped models, else the stepped parameters."""
    world = _world.current()
    if models := [model for model in _kept or [] if model in world.trained_models]:
        return models[0] if len(models) == 1 else models
    if world.stepped_optimizers:
        groups = [group for opt in world.stepped_optimizers for group in opt.param_groups]
        return [tensor for group in groups for tensor in group["params"]]
    return None


def begins_unwrapped() -> None:
    """An optimizer steps and nothing was wrapped: the script reduces gradients itself."""
    if _world.current().spans_nodes:
        log(
            "warn",
            "nothing is wrapped in DDP or FSDP; training begins with this optimizer step: from "
            "here on, collectives stay inside the node",
        )
    _C.event(_C.EVENT_TRAIN)


def meet_for_new_tensors(group: Any) -> None:
    """All nodes wrap a new model now, or none does: compare before they exchange its weights."""
    site = os.path.basename(_implicit.call_site())
    checker = _world.backend_of(group).source.checker
    checker.compare(f"DistributedDataParallel() of a new model at {site}")
