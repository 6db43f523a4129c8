# SPDX-License-Identifier: MIT
"""The moment at which nodes begin to train apart, and what is remembered of it."""

import os
from typing import Any

import torch

from lofi import _implicit, _world
from lofi._log import log
from lofi._native import _C
from lofi._average import digests_of


def begins(model: torch.nn.Module) -> None:
    """A wrapped model runs a forward with gradients. Cheap after the first time."""
    world = _world.current()
    if model not in world.trained_models:
        if world.spans_nodes:
            world.trained_models[model] = digests_of(model)
            for tensor in (*model.parameters(), *model.buffers()):
                world.remember_trained(tensor)
        else:
            world.trained_models[model] = {}
    if _C.phase() in ("setup", "done"):
        log("info", f"training begins with {type(model).__name__}: nodes train apart")
        _C.event(_C.EVENT_TRAIN)


def begins_unwrapped() -> None:
    """An optimizer steps and nothing was wrapped: the script reduces gradients itself."""
    if _world.current().spans_nodes:
        log(
            "warn",
            "nothing is wrapped in DDP or FSDP; training begins with this optimizer step: from here "
            "on, collectives stay inside the node",
        )
    _C.event(_C.EVENT_TRAIN)


def meet_for_new_tensors(group: Any) -> None:
    """All nodes wrap a new model now, or none does: compare before they exchange its weights."""
    site = os.path.basename(_implicit.call_site())
    checker = _world.backend_of(group).source.checker
    checker.compare(f"DistributedDataParallel() of a new model at {site}")
