# SPDX-License-Identifier: MIT
"""Sharded models. A replica in each node (HSDP) trains as that node alone and averages; a model
whose parts lie in several nodes is refused where it is set up, and works inside one node."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.rank_jobs import (
    Raised,
    Weights,
    batch,
    check_all_equal,
    check_apart,
    equal,
    job,
    net,
    raised,
    run_nodes,
    weights,
)
from harness.ranks import run_ranks
from harness.truth import mean_of_states
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1
from torch.distributed.fsdp import MixedPrecisionPolicy, ShardingStrategy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

STEPS = 4
CPU = torch.device("cpu")
Mesh = Callable[[], Any]


def full(model: nn.Module) -> Weights:
    """The whole weights, of a node's ranks together."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in model.state_dict().items()
    }


def train_clipped(model: nn.Module, rank: int, total_norms: list[torch.Tensor]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        (model(batch(rank, step)).float() - 1).pow(2).mean().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        total_norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        optimizer.step()


def uneven() -> nn.Module:
    """Two ranks can't split it evenly; of the last bias one has nothing."""
    return nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1))


def sharded(mesh: Any, dtype: torch.dtype | None) -> nn.Module:
    torch.manual_seed(0)
    model = uneven()
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype)
    fully_shard(model[0], mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


# ---- HSDP with fully_shard -----------------------------------------------------------------------


def two_dimensions() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("nodes", "ranks"))


def of_groups() -> DeviceMesh:
    """A mesh of groups that split_group made."""
    rank, world = dist.get_rank(), dist.group.WORLD
    within = dist.split_group(world, [[0, 1], [2, 3]])
    across = dist.split_group(world, [[0, 2], [1, 3]])
    assert dist.get_process_group_ranks(within) == [rank // 2 * 2, rank // 2 * 2 + 1]
    layout = torch.arange(4).view(2, 2)
    names = ("nodes", "ranks")
    return DeviceMesh.from_group([across, within], "cpu", mesh=layout, mesh_dim_names=names)


def evaluate(model: nn.Module) -> None:
    """Leaves the root's parameters gathered."""
    with torch.no_grad():
        model(batch(dist.get_rank(), 99))


def _hsdp(make_mesh: Mesh, dtype: torch.dtype | None) -> Any:
    import lofi

    with job():
        model = sharded(make_mesh(), dtype)
        norms: list[torch.Tensor] = []
        train_clipped(model, dist.get_rank(), norms)
        own = full(model)
        evaluate(model)
        stats = lofi.stats()
        average = lofi.finalize_average(model)
        options = StateDictOptions(full_state_dict=True)
        saved = get_model_state_dict(model, options=options)
        return own, norms, stats, average, full(model), saved


def _hsdp_alone(node: int, dtype: torch.dtype | None) -> Any:
    with job("gloo"):
        model = sharded(init_device_mesh("cpu", (2,)), dtype)
        norms: list[torch.Tensor] = []
        train_clipped(model, 2 * node + dist.get_rank(), norms)
        return full(model), norms


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mesh", [two_dimensions, of_groups])
def test_each_node_trains_its_own_replica_as_if_alone(mesh, dtype):
    results = run_nodes(_hsdp, mesh, dtype)
    own = [result[0] for result in results]
    check_apart(own)
    for node in range(2):
        alone = run_ranks(_hsdp_alone, 2, node, dtype)
        for rank in range(2):
            trained, norms = results[2 * node + rank][:2]
            assert equal(trained, alone[rank][0])
            assert all(map(torch.equal, norms, alone[rank][1]))
    assert not torch.equal(results[0][1][1], results[2][1][1])
    mean = mean_of_states(own[0], own[2])
    for _, _, stats, average, after, saved in results:
        assert stats["phase"] == "train"
        assert stats["cross_bytes"]["training"] == 0
        assert stats["collectives"]["world"]["training"] == 0
        assert average.nodes == [0, 1] and average.averaged == 4
        assert equal(after, mean)
        assert equal(saved, mean)


# ---- HSDP with FSDP1 -----------------------------------------------------------------------------


def fsdp1(groups: Any, strategy: ShardingStrategy, use_orig_params: bool = False) -> FSDP1:
    torch.manual_seed(0)
    options = {"sharding_strategy": strategy, "use_orig_params": use_orig_params}
    model = net()
    model[0] = FSDP1(model[0], process_group=groups, device_id=CPU, **options)
    return FSDP1(model, process_group=groups, device_id=CPU, **options)


def full_of_fsdp1(model: FSDP1) -> Weights:
    with FSDP1.summon_full_params(model):
        return weights(model.module)


def _fsdp1_hybrid(use_orig_params: bool) -> Any:
    import lofi

    with job():
        rank, world = dist.get_rank(), dist.group.WORLD
        within = dist.split_group(world, [[0, 1], [2, 3]])
        across = dist.split_group(world, [[0, 2], [1, 3]])
        model = fsdp1((within, across), ShardingStrategy.HYBRID_SHARD, use_orig_params)
        norms: list[torch.Tensor] = []
        train_clipped(model, rank, norms)
        own = full_of_fsdp1(model)
        evaluate(model)
        crossed = lofi.stats()["cross_bytes"]["training"]
        lofi.finalize_average(model)
        return own, crossed, full_of_fsdp1(model)


@pytest.mark.quick
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_hybrid_shard(use_orig_params):
    results = run_nodes(_fsdp1_hybrid, use_orig_params)
    own = [result[0] for result in results]
    check_apart(own)
    for _, crossed, average in results:
        assert crossed == 0
        assert equal(average, mean_of_states(own[0], own[2]))


# ---- spread over nodes: refused, inside one node: works ------------------------------------------


def group_of(where: str) -> Any:
    """The world, or the group of this rank's node."""
    if where == "world":
        return None
    return dist.split_group(dist.group.WORLD, [[0, 1], [2, 3]])


def mesh_of(where: str) -> DeviceMesh:
    if where == "world":
        return init_device_mesh("cpu", (4,))
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("nodes", "ranks"))["ranks"]


def step(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    loss = (model(inputs) - 1).pow(2).mean()
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return loss.detach()


def use_fully_shard(where: str) -> Any:
    model = net()
    fully_shard(model, mesh=mesh_of(where))
    step(model, batch(dist.get_rank(), 0))
    return full(model)


def use_fully_shard_by_default(where: str) -> Any:
    """Without a mesh it takes the world."""
    model = net()
    fully_shard(model) if where == "world" else fully_shard(model, mesh=mesh_of(where))
    step(model, batch(dist.get_rank(), 0))
    return full(model)


def use_fsdp1(where: str) -> Any:
    model = fsdp1(group_of(where), ShardingStrategy.FULL_SHARD)
    step(model, batch(dist.get_rank(), 0))
    return full_of_fsdp1(model)


def use_zero(where: str) -> Any:
    model = net()
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), torch.optim.Adam, process_group=group_of(where), lr=0.1
    )
    (model(batch(0, 0)) - 1).pow(2).mean().backward()
    optimizer.step()
    return weights(model)


def use_tensor_parallel(where: str) -> Any:
    model = net()
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    model = parallelize_module(model, mesh_of(where), plan)
    step(model, batch(0, 0))
    return full(model)


def use_distribute_tensor(where: str) -> Any:
    whole = torch.arange(8.0)
    tensor = distribute_tensor(whole, mesh_of(where), [Shard(0)])
    assert torch.equal(tensor.redistribute(placements=[Replicate()]).to_local(), whole)
    return {"tensor": (tensor * 2).full_tensor()}


def use_pipeline(where: str) -> Any:
    group = group_of(where)
    index = dist.get_rank(group)
    stage = PipelineStage(nn.Linear(8, 8), index, dist.get_world_size(group), CPU, group=group)
    return {"stage": torch.tensor(stage.stage_index)}


USES = {
    "fully_shard": use_fully_shard,
    "fully_shard by default": use_fully_shard_by_default,
    "FSDP1": use_fsdp1,
    "ZeroRedundancyOptimizer": use_zero,
    "parallelize_module": use_tensor_parallel,
    "distribute_tensor": use_distribute_tensor,
    "PipelineStage": use_pipeline,
}


def _uses(where: str, phase: str) -> dict[str, Any]:
    import lofi

    results = {}
    with job():
        if phase == "train":
            lofi.start()
        for name, use in USES.items():
            torch.manual_seed(0)
            results[name] = raised(use, where) if where == "world" else use(where)
        # Nobody hangs, and nothing is left half done: the groups go on.
        with lofi.scope("world"):
            total = torch.ones(1)
            dist.all_reduce(total)
        results["total"] = total.item()
        return results


@pytest.mark.parametrize("phase", ["setup", "train"])
def test_a_model_spread_over_nodes_is_refused_where_it_is_set_up(phase):
    for rank, results in enumerate(run_nodes(_uses, "world", phase)):
        assert results.pop("total") == 4.0
        for name, error in results.items():
            where = f"{name}, rank {rank}: {error}"
            assert isinstance(error, Raised) and "RuntimeError" in error.kinds, where
            assert "would spread a model over 2 nodes" in error.text, where
            assert "keep each replica inside a node (HSDP" in error.text, where
            assert error.seconds < 10


def test_the_same_inside_one_node_works():
    results = run_nodes(_uses, "node", "setup")
    for name in USES:
        outcomes = [result[name] for result in results]
        if name == "PipelineStage":
            assert [int(outcome["stage"]) for outcome in outcomes] == [0, 1, 0, 1]
        elif name in ("ZeroRedundancyOptimizer", "parallelize_module", "distribute_tensor"):
            check_all_equal(outcomes)  # the same data everywhere
        else:
            check_apart(outcomes)


def test_tensor_parallel_inside_a_node_is_right():
    torch.manual_seed(0)
    model = net()
    step(model, batch(0, 0))
    for result in run_nodes(_uses, "node", "setup"):
        for name, value in result["parallelize_module"].items():
            assert torch.allclose(value, model.state_dict()[name], atol=1e-6), name
