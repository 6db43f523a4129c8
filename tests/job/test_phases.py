# SPDX-License-Identifier: MIT
"""Phases and scopes: which ranks a collective reaches, and when training begins and goes on."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import truth
from harness.rank_jobs import (
    batch,
    check_apart,
    equal,
    job,
    raised,
    run_nodes,
    train,
    weights,
    wrapped,
)
from torch import nn


def _evaluates_on_rank_0() -> Any:
    import lofi

    with job():
        build = lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))  # noqa: E731
        plain, with_buffers = wrapped(), wrapped(build=build)
        for epoch in range(2):
            train(plain, 2, first=2 * epoch)
            train(with_buffers, 2, first=2 * epoch)
            if dist.get_rank() == 0:
                with torch.no_grad():
                    plain(batch(0, 9))
                    plain.eval()
                    plain.module(batch(0, 9))
                    with_buffers.eval()
                    with_buffers.module(batch(0, 9))
                    plain.train()
                    with_buffers.train()
        own = weights(plain)
        lofi.finalize_average([plain, with_buffers])
        return own, lofi.stats()["cross_bytes"]["training"]


def test_evaluation_on_rank_0_alone():
    results = run_nodes(_evaluates_on_rank_0)
    check_apart([own for own, _ in results])
    assert [crossed for _, crossed in results] == [0] * 4


def _scopes() -> Any:
    import lofi

    def total() -> float:
        value = torch.tensor([float(2 ** dist.get_rank())])
        dist.all_reduce(value)
        return value.item()

    with job():
        seen = {"setup": (lofi.phase(), total())}
        with lofi.scope("node"):
            seen["node in setup"] = (lofi.phase(), total())
        lofi.start()
        seen["started"] = (lofi.phase(), total())
        with lofi.scope("world"):
            seen["world"] = (lofi.phase(), total())
            with lofi.scope("node"):
                seen["node in world"] = (lofi.phase(), total())
                with lofi.scope("world"):
                    seen["world in node in world"] = (lofi.phase(), total())
            seen["world again"] = (lofi.phase(), total())
        try:
            with lofi.scope("world"):
                raise KeyError
        except KeyError:
            seen["after an exception"] = (lofi.phase(), total())
        lofi.finalize_average(torch.zeros(2))
        seen["done"] = (lofi.phase(), total())
        seen["wrong scope"] = str(raised(lofi.scope("nodes").__enter__))
        return seen, lofi.stats()


@pytest.mark.quick
def test_scopes_and_phases():
    for rank, (seen, stats) in enumerate(run_nodes(_scopes)):
        world, node = 15.0, 6.0 if rank < 2 else 24.0
        assert seen.pop("wrong scope").endswith('takes "world" or "node", not \'nodes\'')
        assert seen == {
            "setup": ("setup", world),
            "node in setup": ("setup", node),
            "started": ("train", node),
            "world": ("train", world),
            "node in world": ("train", node),
            "world in node in world": ("train", world),
            "world again": ("train", world),
            "after an exception": ("train", node),
            "done": ("done", world),
        }
        assert stats["phase"] == "done"
        assert (stats["nodes"], stats["node"]) == (2, rank // 2)
        assert stats["collectives"]["world"]["setup"] == 1
        assert stats["collectives"]["node"]["setup"] == 1
        assert stats["collectives"]["world"]["training"] == 3
        assert stats["collectives"]["node"]["training"] == 3
        assert stats["collectives"]["world"]["done"] == 1
        assert stats["cross_bytes"]["training"] > 0


def _phases() -> Any:
    import lofi

    with job():
        model, seen = wrapped(), [lofi.phase()]
        with torch.no_grad():
            model(batch(0, 0))
        seen.append(lofi.phase())
        train(model, 1)
        seen.append(lofi.phase())
        lofi.finalize_average(model)
        seen.append(lofi.phase())
        train(model, 1, first=1)
        seen.append(lofi.phase())
        own = weights(model)
        lofi.finalize_average(model)
        return seen, own, weights(model)


def test_training_goes_on_after_an_average():
    results = run_nodes(_phases)
    assert all(seen == ["setup", "setup", "train", "done", "train"] for seen, *_ in results)
    own = [own for _, own, _ in results]
    check_apart(own)
    assert all(equal(average, truth.mean_of_states(own[0], own[2])) for *_, average in results)
