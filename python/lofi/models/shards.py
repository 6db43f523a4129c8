# SPDX-License-Identifier: MIT
"""FSDP keeps a module's weights as shards, whatever the module shows at the moment: these."""

import sys
from typing import Any

import torch


def reshard(module: torch.nn.Module) -> None:
    """Give back gathered parameters. After a forward without gradients FSDP keeps those of the
    root: FSDP2 shows them, and forgets what is written into them; FSDP1 computes with them."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported: nothing is sharded
    if fsdp is None:
        return
    for part in module.modules():
        if isinstance(part, fsdp.FSDPModule):
            part.reshard()
    for _, part in _fsdp1_modules(module):
        _reshard_fsdp1(part)


def flat_parameters(module: torch.nn.Module) -> tuple[dict[str, torch.Tensor], set[int]]:
    """FSDP1 with use_orig_params=True shows views into its flat parameters: these by name, and the
    identities of the views."""
    found: dict[str, torch.Tensor] = {}
    views: set[int] = set()
    for name, part in _fsdp1_modules(module):
        if part._handle._use_orig_params:
            flat = part._handle.flat_param
            found[f"{name}._flat_param" if name else "_flat_param"] = flat
            views.update(id(view) for view in (*flat._params, *flat._shared_params))
    return found, views


def _fsdp1_modules(module: torch.nn.Module) -> list[tuple[str, Any]]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    return [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, fsdp.FullyShardedDataParallel) and part._handle is not None
    ]


def _reshard_fsdp1(part: Any) -> None:
    from torch.distributed.fsdp import _runtime_utils
    from torch.distributed.fsdp._common_utils import HandleTrainingState

    handle = part._handle
    # Within summon_full_params the script may write into the whole parameters, which FSDP writes
    # back afterwards: they stay gathered.
    is_idle = handle._training_state == HandleTrainingState.IDLE
    has_run = hasattr(handle.flat_param, "_full_param_padded")
    if is_idle and has_run and not handle.needs_unshard():
        _runtime_utils._reshard(part, handle, handle.uses_sharded_strategy)
