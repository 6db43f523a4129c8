# SPDX-License-Identifier: MIT
"""Hugging Face's Trainer: where it evaluates, where training begins and where it ends.

At on_train_end the best model has been loaded, if that was asked for, and the script's own
save_model() is still to come: what is averaged there is what is saved and evaluated afterwards.
"""

import os
from typing import Any

import torch
import torch.distributed as dist

from lofi.job import events, job
from lofi.job.log import say, tell
from lofi.job.native import _C
from lofi.job.patch import when_imported, wrap
from lofi.launch import evaluation

_BUCKET_BYTES = 250 * 1024 * 1024


def install() -> None:
    when_imported("transformers.trainer", _install)


def _install(module: Any) -> None:
    trainer = module.Trainer
    for loop in ("evaluation_loop", "prediction_loop"):
        if hasattr(trainer, loop):
            wrap(trainer, loop, _evaluate)
    wrap(trainer, "_save_checkpoint", _save_checkpoint)
    module.DEFAULT_CALLBACKS.append(_callback(module.TrainerCallback))


def _evaluate(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    with evaluation.of(self.model):
        return original(self, *args, **kwargs)


def _save_checkpoint(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    # The best checkpoint is chosen by the accuracy of the average, so the average is what it holds.
    if not self.args.load_best_model_at_end:
        return original(self, *args, **kwargs)
    with evaluation.of(self.model):
        return original(self, *args, **kwargs)


def _callback(base: type) -> type:
    class LofiCallback(base):
        """Training begins and ends for lofi."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            here = job.current()
            if not here.spans_nodes or not dist.is_initialized():
                return
            if here.settings.eval == "node" and args.load_best_model_at_end:
                tell(
                    "warn",
                    "load_best_model_at_end with LOFI_EVAL=node: each node chooses its best step "
                    "by its own accuracy, and nodes may choose different ones. With "
                    "LOFI_EVAL=averaged all choose the same",
                )
            _C.event(_C.EVENT_TRAIN)

        def on_train_end(
            self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
        ) -> None:
            here = job.current()
            if not here.spans_nodes or not dist.is_initialized():
                return
            evaluation.own_weights_back()
            if args.load_best_model_at_end:
                _share_the_best(model, state.best_model_checkpoint)
            events.end(False)

    return LofiCallback


def _share_the_best(model: Any, checkpoint: str | None) -> None:
    """The first node writes checkpoints. Where machines share no disk, the others have not loaded
    the best one, and an average with their last weights would be of two different things."""
    has_it = torch.tensor([int(bool(checkpoint and os.path.isdir(checkpoint)))])
    _C.event(_C.EVENT_AVERAGE)  # real collectives, that count as the average's
    try:
        _exchange_the_best(model, checkpoint, has_it)
    finally:
        _C.event(_C.EVENT_AVERAGE_BACK)


def _exchange_the_best(model: Any, checkpoint: str | None, has_it: torch.Tensor) -> None:
    with torch.no_grad():
        everybody = [torch.zeros_like(has_it) for _ in range(dist.get_world_size())]
        dist.all_gather(everybody, has_it)
        ranks = [rank for rank, has in enumerate(everybody) if has.item()]
        if not ranks or len(ranks) == len(everybody):
            return
        tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
        dist._broadcast_coalesced(dist.group.WORLD, tensors, _BUCKET_BYTES, ranks[0])
    if dist.get_rank() == ranks[0]:
        say(f"the best model, {checkpoint}, was not on every machine's disk: it was sent to all")
