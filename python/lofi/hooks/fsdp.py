# SPDX-License-Identifier: MIT
"""FSDP: when training begins. Nothing else is needed for HSDP: its replicate group has one rank in
each node, so that its all-reduce is mirrored like DDP's and nothing is sent."""

from typing import Any

import torch

from lofi.job import job
from lofi.job.patch import not_compiled, when_imported, wrap
from lofi.models import training


def install() -> None:
    when_imported(
        "torch.distributed.fsdp._fully_shard._fsdp_state",
        lambda module: wrap(module.FSDPState, "_pre_forward", _fsdp2_pre_forward),
    )
    when_imported(
        "torch.distributed.fsdp.fully_sharded_data_parallel",
        lambda module: wrap(module.FullyShardedDataParallel, "forward", _fsdp1_forward),
    )


@not_compiled
def _begins(model: torch.nn.Module) -> None:
    if torch.is_grad_enabled() and job.current().topology is not None:
        training.begins(model)


def _fsdp2_pre_forward(original: Any, self: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.compiler.is_compiling() and self._is_root is not False:
        _begins(module)
    return original(self, module, *args, **kwargs)


def _fsdp1_forward(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.compiler.is_compiling() and self._is_root is not False:
        _begins(self)
    return original(self, *args, **kwargs)
