# SPDX-License-Identifier: MIT
"""Models that are spread over nodes: refused where they are set up.

Nodes that train apart exchange nothing, so each must hold a whole replica. A shard in another node
would silently come from this node's image: a wrong value, not an error.
"""

import inspect
from functools import partial
from typing import Any

import torch.distributed as dist

from lofi.groups import lookup
from lofi.job import job
from lofi.job.patch import when_imported, wrap


def install() -> None:
    when_imported(
        "torch.distributed.optim.zero_redundancy_optimizer",
        lambda module: wrap(module.ZeroRedundancyOptimizer, "__init__", _zero),
    )
    when_imported(
        "torch.distributed.fsdp.fully_sharded_data_parallel",
        lambda module: wrap(module, "_init_process_group_state", _fsdp1),
    )
    when_imported(
        "torch.distributed.fsdp._fully_shard._fsdp_common",
        lambda module: wrap(module.FSDPMeshInfo, "__post_init__", _fsdp2),
    )
    when_imported("torch.distributed.tensor.placement_types", _install_dtensor)
    when_imported(
        "torch.distributed.pipelining.stage",
        lambda module: wrap(module._PipelineStageBase, "__init__", _pipeline),
    )

    for name, owner in _DEEPSPEED:
        when_imported(f"deepspeed.runtime.{name}", partial(_install_deepspeed, owner))


# DeepSpeed's optimizers that give each rank a part of the states: ZeRO 1 and 2, 3, and that of
# bfloat16, which is ZeRO 1.
_DEEPSPEED = (
    ("zero.stage_1_and_2", "DeepSpeedZeroOptimizer"),
    ("zero.stage3", "DeepSpeedZeroOptimizer_Stage3"),
    ("bf16_optimizer", "BF16_Optimizer"),
)


def _install_deepspeed(owner: str, module: Any) -> None:
    if hasattr(module, owner):  # releases differ
        wrap(getattr(module, owner), "__init__", _deepspeed)


def _deepspeed(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    given = inspect.signature(original).bind(self, *args, **kwargs).arguments
    what = f"DeepSpeed's {type(self).__name__}"
    _refuse(what, given.get("dp_process_group"), 'take "zero_optimization": {"stage": 0}')
    original(self, *args, **kwargs)


def _install_dtensor(module: Any) -> None:
    wrap(module.Shard, "_shard_tensor", _shard_tensor)


_HSDP = (
    "keep each replica inside a node (HSDP: a device mesh of (nodes, ranks of a node), sharded "
    "over its second dimension)"
)


def _refuse(what: str, group: Any, instead: str = _HSDP) -> None:
    nodes = lookup.nodes_spanned(group)
    if nodes > 1 and job.current().spans_nodes:
        raise RuntimeError(
            f"lofi: {what} would spread a model over {nodes} nodes, and nodes train apart: "
            f"{instead}"
        )


def _zero(
    original: Any,
    self: Any,
    params: Any,
    optimizer_class: Any,
    process_group: Any = None,
    *args: Any,
    **kwargs: Any,
) -> None:
    if dist.is_initialized():
        _refuse("ZeroRedundancyOptimizer", process_group)
    original(self, params, optimizer_class, process_group, *args, **kwargs)


def _fsdp1(original: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(state, *args, **kwargs)
    strategy = getattr(args[1] if len(args) > 1 else kwargs.get("sharding_strategy"), "name", "")
    if strategy != "NO_SHARD":
        _refuse("FullyShardedDataParallel", state.process_group)
    return result


def _fsdp2(original: Any, self: Any) -> None:
    original(self)
    _refuse("fully_shard", self.shard_process_group)


def _shard_tensor(
    original: Any, self: Any, tensor: Any, mesh: Any, mesh_dim: int, *args: Any, **kwargs: Any
) -> Any:
    _refuse("a DTensor sharded over this mesh (tensor parallelism)", mesh.get_group(mesh_dim))
    return original(self, tensor, mesh, mesh_dim, *args, **kwargs)


def _pipeline(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    group = kwargs.get("group") or (args[4] if len(args) > 4 else None)
    _refuse("a pipeline", group)
    original(self, *args, **kwargs)
