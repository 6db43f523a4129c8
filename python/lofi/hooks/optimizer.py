# SPDX-License-Identifier: MIT
"""A script that wraps nothing and reduces gradients itself: training begins with its first step."""

from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

from lofi.job import job
from lofi.models import training


def install() -> None:
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    if job.current().topology is not None:
        training.steps(optimizer)
