# SPDX-License-Identifier: MIT
"""A script that wraps nothing and reduces gradients itself: training begins with its first step."""

from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from lofi.job import job
from lofi.job.native import _C
from lofi.launch import signals
from lofi.models import training

_handle: Any = None


def install() -> None:
    global _handle
    _handle = register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    here = job.current()
    if here.topology is None:
        return
    here.updates += 1
    here.optimizers.add(optimizer)
    if here.swaps:
        training.goes_on()  # gradients came by a way that lofi does not see
    if signals.is_watching():
        signals.before_update()
    if here.wrapped or _C.phase() not in ("setup", "train"):
        return
    if not any(optimizer is known for known in here.stepped_optimizers):
        here.stepped_optimizers.append(optimizer)
    if _C.phase() == "setup":
        training.begins_unwrapped()
