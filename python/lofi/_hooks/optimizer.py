# SPDX-License-Identifier: MIT
"""A script that wraps nothing and reduces gradients itself: training begins with its first step."""

from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from lofi import _training, _world
from lofi._native import _C

_handle: Any = None


def install() -> None:
    global _handle
    _handle = register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    world = _world.current()
    if world.swaps:
        _training.goes_on()  # gradients came by a way that lofi does not see
    if world.topology is None or world.wrapped or _C.phase() != "setup":
        return
    world.stepped_optimizers.append(optimizer)
    _training.begins_unwrapped()
