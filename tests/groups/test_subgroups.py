# SPDX-License-Identifier: MIT
"""Groups of some ranks: inside a node, spread unevenly, and not of lofi."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.rank_jobs import (
    captured_stderr,
    equal,
    job,
    net,
    raised,
    run_nodes,
    train,
    weights,
    wrapped,
)
from torch.nn.parallel import DistributedDataParallel as DDP


def node_members() -> list[int]:
    first = dist.get_rank() // 2 * 2
    return [first, first + 1]


def _inside_a_node() -> Any:
    import lofi

    with job():
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        rank = dist.get_rank()
        group = groups[rank // 2]
        torch.manual_seed(rank)
        model = DDP(net(), process_group=group)
        start = weights(model.module)
        train(model, 2)
        value = torch.tensor([1.0 + rank])
        dist.broadcast(value, src=rank // 2 * 2, group=group)
        parts = [torch.tensor([float(rank)]), torch.tensor([float(rank)])]
        out = torch.zeros(1)
        dist.reduce_scatter(out, parts, group=group)
        own = weights(model.module)
        stats = lofi.stats()
        error = raised(lofi.finalize_average, model)
        return start, own, stats, value.item(), out.item(), error


@pytest.mark.quick
def test_ddp_over_a_group_inside_one_node():
    results = run_nodes(_inside_a_node)
    for rank, (start, own, stats, value, out, error) in enumerate(results):
        first = rank // 2 * 2
        torch.manual_seed(first)
        assert equal(start, net().state_dict())
        assert not equal(own, start)
        assert value == 1.0 + first and out == 2 * first + 1.0
        assert stats["phase"] == "train" and sum(stats["cross_bytes"].values()) == 0
        # Two groups of one job begin from weights of their own: no model soup of these.
        assert error.type == "ValueError" and "weights that training began with" in error.text
    assert equal(results[0][1], results[1][1]) and equal(results[2][1], results[3][1])


def _uneven_group() -> Any:
    with job():
        group = dist.new_group([0, 2, 3])
        value = torch.ones(1)
        if dist.get_rank() != 1:
            dist.all_reduce(value, group=group)
        model = wrapped()
        train(model, 1)
        if dist.get_rank() == 1:
            return value.item(), None
        return value.item(), [
            raised(dist.all_reduce, torch.ones(1), group=group),
            raised(dist.barrier, group=group),
        ]


def test_a_group_spread_unevenly_over_nodes():
    results = run_nodes(_uneven_group)
    assert [value for value, _ in results] == [3.0, 1.0, 3.0, 3.0]
    for rank in (0, 2, 3):
        for error in results[rank][1]:
            assert "RuntimeError" in error.kinds, error
            assert "3 members are spread unevenly over 2 nodes" in error.text
            assert "1 in node 0, 2 in node 1" in error.text


def _a_gloo_group() -> Any:
    import lofi

    with job(), captured_stderr() as stderr:
        spanning = dist.new_group(backend="gloo")
        inside = dist.new_group(node_members(), backend="gloo", use_local_synchronization=True)
        wrapped_model = wrapped()
        train(wrapped_model, 1)
        before = lofi.stats()["collectives"]["world"]["bypass"]
        value = torch.tensor([float(dist.get_rank())])
        dist.all_reduce(value, group=spanning)
        local = torch.tensor([float(dist.get_rank())])
        dist.all_reduce(local, group=inside)
        counted = lofi.stats()["collectives"]["world"]["bypass"] - before
    return value.item(), local.item(), counted, before, stderr.lines("spans 2 nodes")


def test_a_gloo_group_over_nodes_is_counted_as_bypass():
    for rank, (value, local, counted, before, lines) in enumerate(run_nodes(_a_gloo_group)):
        assert value == 6.0 and local == (1.0 if rank < 2 else 5.0)
        assert before >= 1
        assert counted == 1
        assert len(lines) == (rank == 0) and all("'gloo'" in line for line in lines)
