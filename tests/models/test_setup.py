# SPDX-License-Identifier: MIT
"""What happens before training begins: loads, broadcasts, models that are wrapped again."""

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import truth
from harness.rank_jobs import (
    batch,
    captured_stderr,
    check_all_equal,
    check_apart,
    equal,
    job,
    net,
    run_nodes,
    train,
    weights,
    wrapped,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.nn.parallel import DistributedDataParallel as DDP


def _save_barrier_load(path: str) -> Any:
    with job():
        model = wrapped()
        if dist.get_rank() == 0:
            time.sleep(0.3)  # the others must wait, in all nodes
            torch.save({k: torch.full_like(v, 0.5) for k, v in model.state_dict().items()}, path)
        dist.barrier()
        model.load_state_dict(torch.load(path, weights_only=True))
        loaded = weights(model)
        train(model, 2)
        return loaded, weights(model)


@pytest.mark.quick
def test_save_barrier_load_after_wrapping(tmp_path):
    results = run_nodes(_save_barrier_load, str(tmp_path / "model.pt"))
    for loaded, _ in results:
        assert all(bool((value == 0.5).all()) for value in loaded.values())
    check_apart([end for _, end in results])


def _broadcast_from_rank0() -> Any:
    with job():
        model = wrapped()
        state = {}
        if dist.get_rank() == 0:
            state = {k: torch.full_like(v, 0.5) for k, v in model.module.state_dict().items()}
        options = StateDictOptions(broadcast_from_rank0=True, full_state_dict=True)
        set_model_state_dict(model.module, state, options=options)
        return weights(model)


def test_loading_with_broadcast_from_rank0():
    for loaded in run_nodes(_broadcast_from_rank0):
        assert all(bool((value == 0.5).all()) for value in loaded.values())


def _second_model() -> Any:
    import lofi

    with job():
        generator = wrapped()
        train(generator, 2)
        before = weights(generator)
        sent = [lofi.stats()["cross_bytes"]]
        critic = wrapped(seed=100 + dist.get_rank())
        sent.append(lofi.stats()["cross_bytes"])
        start = weights(critic)
        after = weights(generator)
        train(critic, 2)
        train(generator, 1, first=2)
        average = lofi.finalize_average([generator, critic])
        ends = weights(generator), weights(critic)
        return before, after, start, average.averaged, *ends, sent


def test_a_model_wrapped_while_another_trains_starts_equal():
    results = run_nodes(_second_model)
    before, after, start, averaged, generator, critic, sent = (
        list(part) for part in zip(*results, strict=True)
    )
    check_apart(before)
    assert all(equal(a, b) for a, b in zip(before, after, strict=True))
    check_all_equal(start)
    assert averaged == [8] * 4
    check_all_equal(generator)
    check_all_equal(critic)
    for earlier, later in sent:
        assert earlier["training"] == later["training"] == 0
    assert sum(later["setup"] - earlier["setup"] for earlier, later in sent) > 0


def _rewrap(new_head: bool) -> Any:
    import lofi

    with job():
        torch.manual_seed(dist.get_rank())
        module = net()
        module[0].requires_grad_(False)
        model = DDP(module)
        train(model, 2)
        own = weights(module)
        module[0].requires_grad_(True)
        if new_head:
            torch.manual_seed(100 + dist.get_rank())
            module[2] = nn.Linear(16, 4)
        model = DDP(module)
        start = weights(module)
        train(model, 2, first=2)
        crossed = lofi.stats()["cross_bytes"]["training"]
        trained = weights(module)
        lofi.finalize_average(model)
        return own, start, trained, weights(module), crossed


@pytest.mark.quick
def test_wrapping_again_keeps_each_nodes_training():
    results = run_nodes(_rewrap, False)
    own, start, trained, average, crossed = (list(part) for part in zip(*results, strict=True))
    check_apart(own)
    assert all(equal(a, b) for a, b in zip(own, start, strict=True))
    check_apart(trained)
    assert crossed == [0] * 4
    assert all(equal(end, truth.mean_of_states(trained[0], trained[2])) for end in average)


def test_wrapping_again_with_a_new_head():
    results = run_nodes(_rewrap, True)
    own, start, trained, average, crossed = (list(part) for part in zip(*results, strict=True))
    for before, after in zip(own, start, strict=True):
        assert torch.equal(before["0.weight"], after["0.weight"])
        assert not torch.equal(before["2.weight"], after["2.weight"])
        assert torch.equal(after["2.weight"], start[0]["2.weight"])
    assert crossed == [0] * 4
    check_apart(trained)
    assert all(equal(end, truth.mean_of_states(trained[0], trained[2])) for end in average)


def _never_wraps() -> Any:
    import lofi

    with job(), captured_stderr() as stderr:
        torch.manual_seed(7)
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ends, phases = [], []
        for step in range(3):
            optimizer.zero_grad()
            (model(batch(dist.get_rank(), step)) - 1).pow(2).mean().backward()
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
            optimizer.step()
            ends.append(weights(model))
            phases.append(lofi.phase())
        crossed = lofi.stats()["cross_bytes"]
        lofi.finalize_average(model)
    return ends, phases, crossed, weights(model), stderr.lines("nothing is wrapped")


def test_a_loop_that_never_wraps():
    """Nothing tells that it trains before its first step, whose gradients are still everyone's."""
    results = run_nodes(_never_wraps)
    ends = [result[0] for result in results]
    check_all_equal([end[0] for end in ends])
    check_apart([end[1] for end in ends])
    check_apart([end[2] for end in ends])
    for rank, (_, phases, crossed, average, lines) in enumerate(results):
        assert phases == ["train"] * 3
        assert crossed["setup"] > 0 and crossed["training"] == 0
        assert equal(average, truth.mean_of_states(ends[0][2], ends[2][2]))
        assert len(lines) == (rank == 0)


def _starts_by_hand() -> Any:
    import lofi

    with job():
        torch.manual_seed(7)
        model = net()
        lofi.start()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        (model(batch(dist.get_rank(), 0)) - 1).pow(2).mean().backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        optimizer.step()
        return weights(model), lofi.stats()["cross_bytes"]


def test_start_by_hand_makes_the_first_step_the_nodes_own():
    results = run_nodes(_starts_by_hand)
    check_apart([own for own, _ in results])
    assert all(sum(crossed.values()) == 0 for _, crossed in results)
