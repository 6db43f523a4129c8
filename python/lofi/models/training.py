# SPDX-License-Identifier: MIT
"""The moment at which nodes begin to train apart, and what is remembered of it."""

import os
import time
from typing import Any

import torch
import torch.distributed as dist

from lofi.average import swaps
from lofi.groups import crossing
from lofi.job import job
from lofi.job.log import log
from lofi.job.native import _C
from lofi.launch import evaluation
from lofi.models import tracked
from lofi.models.items import digests_of, named_tensors
from lofi.rounds import rounds


def begins(model: torch.nn.Module, synchronised: bool = True) -> None:
    """A wrapped model runs a forward with gradients. Cheap after the first time."""
    here = job.current()
    here.steps += synchronised
    if here.swaps:
        goes_on()
    if evaluation.is_watching() and here.spans_nodes:
        _post(here)
    if model not in here.trained_models:
        if here.spans_nodes:
            here.trained_models[model] = _first_digests(here, model)
        else:
            here.trained_models[model] = {}
        tracked.add(model)
    if _C.phase() in ("setup", "done"):
        log("info", f"training begins with {type(model).__name__}: nodes train apart")
        _C.event(_C.EVENT_TRAIN)


def _post(here: job.Job) -> None:
    """Let a node that waits at an evaluation see that this one is past it."""
    now = time.monotonic()
    if now - here.posted > _SECONDS_BETWEEN_POSTS and here.rank % here.topology.node_size == 0:
        here.posted = now
        rounds.post(here.store, here.node, str(here.steps))


def goes_on() -> None:
    """Training goes on after an evaluation: on the node's own weights, and the average is stale."""
    evaluation.own_weights_back()
    swaps.training_goes_on()


def equalize_copies(model: torch.nn.Module) -> None:
    """EMA copies that were made before DDP sent the first rank's weights around may hold others
    (scripts seed by rank): they, too, start from the first rank's."""
    here = job.current()
    if not evaluation.is_watching() or not here.spans_nodes:
        return
    group = model.process_group
    copies = tracked.copies_of(model)
    common = tracked.count_everywhere(len(copies), group)
    if common == 0:
        return
    tensors = [t.detach() for copy in copies[:common] for _, t in named_tensors(copy)]
    with torch.no_grad():
        dist._broadcast_coalesced(group, tensors, _BROADCAST_BUCKET_BYTES, 0)


def _first_digests(here: job.Job, model: torch.nn.Module) -> dict[str, bytes]:
    """What the model's training begins with; a model that is wrapped again has begun before."""
    digests = digests_of(model)
    for name, tensor in named_tensors(model):
        began = here.remember_trained(tensor, digests.get(name, b""))
        if name in digests:  # tied tensors have one name there
            digests[name] = began
    return digests


_SECONDS_BETWEEN_POSTS = 1.0
_BROADCAST_BUCKET_BYTES = 250 * 1024 * 1024  # as DDP's constructor


def stepped_parameters() -> list[torch.Tensor]:
    """Where nothing was wrapped: what the optimizers that trained hold."""
    groups = [group for opt in job.current().stepped_optimizers for group in opt.param_groups]
    return [tensor for group in groups for tensor in group["params"]]


def begins_unwrapped() -> None:
    """An optimizer steps and nothing was wrapped: the script reduces gradients itself."""
    if job.current().spans_nodes:
        log(
            "warn",
            "nothing is wrapped in DDP or FSDP; training begins with this optimizer step: from "
            "here on, collectives stay inside the node",
        )
    _C.event(_C.EVENT_TRAIN)


def meet_for_new_tensors(group: Any) -> None:
    """All nodes wrap a new model now, or none does: compare before they exchange its weights."""
    site = os.path.basename(crossing.call_site())
    checker = job.backend_of(group).source.checker
    checker.compare(f"DistributedDataParallel() of a new model at {site}")
