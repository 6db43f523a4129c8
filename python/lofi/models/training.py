# SPDX-License-Identifier: MIT
"""The moment at which nodes begin to train apart, and what is remembered of it."""

import os
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch

from lofi.groups import lookup, sites
from lofi.job import events, job
from lofi.job.job import PerJob
from lofi.job.log import log, tell
from lofi.job.native import _C
from lofi.models import tracked
from lofi.models.items import digests_of, named_tensors


@dataclass
class Training:
    """The models that train in a job, and how far training has come."""

    # Wrapped models that have trained, with the digests of their first weights.
    models: "weakref.WeakKeyDictionary[torch.nn.Module, dict[str, bytes]]" = field(
        default_factory=weakref.WeakKeyDictionary
    )
    # Their tensors, by identity, and the digests they began with: a model that is wrapped again
    # must keep them.
    tensors: dict[int, tuple["weakref.ref[torch.Tensor]", bytes]] = field(default_factory=dict)
    wrapped: int = 0  # models wrapped so far
    steps: int = 0  # forwards with gradients of wrapped models whose backward is synchronised
    updates: int = 0  # steps of optimizers
    optimizers: "weakref.WeakSet[Any]" = field(default_factory=weakref.WeakSet)  # that made them
    # Optimizers that step although nothing was wrapped.
    unwrapped_optimizers: list[Any] = field(default_factory=list)

    def has(self, tensor: torch.Tensor) -> bool:
        known = self.tensors.get(id(tensor))
        return known is not None and known[0]() is tensor

    def remember(self, tensor: torch.Tensor, digest: bytes) -> bytes:
        """The digest that the tensor's training began with: this one, unless it is known."""
        key, table = id(tensor), self.tensors
        if not self.has(tensor):
            table[key] = (weakref.ref(tensor, lambda _: table.pop(key, None)), digest)
        return table[key][1]


state = PerJob(Training)


def begins(model: torch.nn.Module, synchronised: bool = True) -> None:
    """A wrapped model runs a forward with gradients. Cheap after the first time."""
    here, trains = job.current(), state()
    events.training_goes_on()
    if synchronised:
        trains.steps += 1
        events.backward_synchronised(trains.steps)
    if model not in trains.models:
        trains.models[model] = _first_digests(trains, model) if here.spans_nodes else {}
        tracked.add(model)
        events.training_begins(model)
    if here.phase in ("setup", "done"):
        log("info", f"training begins with {type(model).__name__}: nodes train apart")
        _C.event(_C.EVENT_TRAIN)


def steps(optimizer: Any) -> None:
    """An optimizer is about to step."""
    trains = state()
    trains.updates += 1
    trains.optimizers.add(optimizer)
    events.training_goes_on()  # gradients may have come by a way that lofi does not see
    events.step(optimizer)
    if trains.wrapped or job.current().phase not in ("setup", "train"):
        return
    if not any(optimizer is known for known in trains.unwrapped_optimizers):
        trains.unwrapped_optimizers.append(optimizer)
    if job.current().phase == "setup":
        _begins_unwrapped()


def _first_digests(trains: Training, model: torch.nn.Module) -> dict[str, bytes]:
    """The digests of a model's first weights; a model that is wrapped again has begun before."""
    digests = digests_of(model)
    for name, tensor in named_tensors(model):
        began = trains.remember(tensor, digests.get(name, b""))
        if name in digests:  # tied tensors have one name there
            digests[name] = began
    return digests


def unwrapped_parameters() -> list[torch.Tensor]:
    """The tensors that train where nothing was wrapped: those of the optimizers."""
    groups = [group for opt in state().unwrapped_optimizers for group in opt.param_groups]
    return [tensor for group in groups for tensor in group["params"]]


def _begins_unwrapped() -> None:
    """An optimizer steps and nothing was wrapped: the script reduces gradients itself."""
    if job.current().spans_nodes:
        tell(
            "warn",
            "nothing is wrapped in DDP or FSDP; training begins with this optimizer step: from "
            "here on, collectives stay inside the node",
        )
    _C.event(_C.EVENT_TRAIN)


def meet_for_new_tensors(group: Any) -> None:
    """All nodes wrap a new model now, or none does: compare before they exchange its weights."""
    site = os.path.basename(sites.call_site())
    checker = lookup.backend_of(group).source.checker
    checker.compare(f"DistributedDataParallel() of a new model at {site}")
