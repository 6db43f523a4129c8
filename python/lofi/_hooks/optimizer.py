# SPDX-License-Identifier: MIT
"""A script that wraps nothing and reduces gradients itself: training begins with its first step."""

from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from lofi import _sigterm, _training, _world
from lofi._native import _C

_handle: Any = None


def install() -> None:
    global _handle
    _handle = register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    world = _world.current()
    if world.topology is None:
        return
    world.updates += 1
    world.optimizers.add(optimizer)
    if world.swaps:
        _training.goes_on()  # gradients came by a way that lofi does not see
    if _sigterm.is_watching():
        _sigterm.before_update()
    if world.wrapped or _C.phase() not in ("setup", "train"):
        return
    if not any(optimizer is known for known in world.stepped_optimizers):
        world.stepped_optimizers.append(optimizer)
    if _C.phase() == "setup":
        _training.begins_unwrapped()
