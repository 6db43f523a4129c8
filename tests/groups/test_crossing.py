# SPDX-License-Identifier: MIT
"""Collectives that cross nodes while they train apart: they are real, counted, refused if asked,
and nodes that do not come to the same one are told."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.rank_jobs import (
    captured_stderr,
    equal,
    job,
    raised,
    run_nodes,
    train,
    weights,
    wrapped,
)


def _stops_early() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 2)
        if lofi.stats()["node"] == 0:
            return None
        return raised(lambda: dist.broadcast(torch.zeros(3), src=0))


def test_a_node_that_stopped_early_is_named():
    results = run_nodes(_stops_early, env={"LOFI_TIMEOUT": "1.5"})
    assert results[:2] == [None, None]
    for error in results[2:]:
        assert error.type == "DistBackendError", error
        assert "broadcast at test_crossing.py:" in error.text
        assert (
            ": Timed out waiting: node 0 did not come to it within 1.5 s (LOFI_TIMEOUT)"
            in error.text
        )
        assert 1.4 < error.seconds < 10


def _averages_while_the_other_broadcasts() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 2)
        if lofi.stats()["node"] == 0:
            own = weights(model)
            error = raised(lofi.finalize_average, model)
            assert equal(own, weights(model))
            return error, lofi.phase()
        return raised(lambda: dist.broadcast(torch.zeros(3), src=0)), lofi.phase()


def test_one_node_averages_while_the_other_broadcasts():
    results = run_nodes(_averages_while_the_other_broadcasts, env={"LOFI_TIMEOUT": "2"})
    for error, phase in results[:2]:
        assert error.type == "DistBackendError", error
        assert " Timed out waiting: node(s) [1] did not come within 2 s" in error.text
        assert "keeps its own weights" in error.text
        assert phase == "train"
    for error, _ in results[2:]:
        assert error.type == "RuntimeError", error
        assert "nodes have drifted apart: node 1 is at broadcast" in error.text
        assert "node 0 at finalize_average" in error.text
        assert error.seconds < 2


def _drifts_between_call_sites() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 1)
        value = torch.full((2,), float(dist.get_rank()))
        if lofi.stats()["node"] == 0:
            return raised(lambda: dist.broadcast(value, src=0))
        return raised(lambda: dist.broadcast_object_list([value], src=0))


@pytest.mark.quick
def test_nodes_at_different_calls_are_told_at_once():
    for rank, error in enumerate(run_nodes(_drifts_between_call_sites)):
        assert error.type == "RuntimeError", error
        assert f"nodes have drifted apart: node {rank // 2} is at broadcast" in error.text
        assert error.seconds < 5


def _users_exchange() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 1)
        rank, counts, warned = dist.get_rank(), [], []

        def bytes_sent() -> int:
            return lofi.stats()["cross_bytes"]["training"]

        with captured_stderr() as stderr:
            for step in range(3):
                value = torch.full((4,), float(10 * step + rank))
                before = bytes_sent()
                dist.broadcast(value, src=1)
                counts.append(bytes_sent() - before)
                assert value.tolist() == [10.0 * step + 1] * 4
        warned.append(stderr.lines("crosses nodes while they train apart"))

        with captured_stderr() as stderr:
            for step in range(2):
                objects = [{"step": step, "from": rank}]
                dist.broadcast_object_list(objects, src=2)
                assert objects == [{"step": step, "from": 2}]
        warned.append(stderr.lines("crosses nodes while they train apart"))

        with captured_stderr() as stderr:
            for _ in range(2):
                part = torch.zeros(2)
                parts = [torch.full((2,), float(i)) for i in range(4)] if rank == 0 else None
                dist.scatter(part, parts, src=0)
                assert part.tolist() == [float(rank)] * 2
        warned.append(stderr.lines("crosses nodes while they train apart"))
        return counts, warned, lofi.stats()


@pytest.mark.quick
def test_a_users_broadcast_is_real_and_counted():
    results = run_nodes(_users_exchange)
    warned = results[0][1]
    assert "broadcast at " in warned[0][0] and "LOFI_STRICT=1" in warned[0][0]
    assert "scatter at " in warned[2][0]
    for rank, (_, lines, stats) in enumerate(results):  # once a call site, not from each rank
        assert [len(kind) for kind in lines] == ([1, 1, 1] if rank == 0 else [0, 0, 0]), lines
        assert stats["collectives"]["world"]["training"] == 3 + 2 * 2 + 2
    # The root's node sends 16 bytes once; who counts them is the root.
    assert sum(counts[0] for counts, *_ in results) == 16
    assert all(len(set(counts)) == 1 for counts, *_ in results)
    assert sum(stats["cross_bytes"]["training"] for *_, stats in results) > 3 * 16


def _strict() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 1)
        part = torch.zeros(2)
        parts = [torch.zeros(2) for _ in range(4)] if dist.get_rank() == 0 else None
        errors = [
            raised(lambda: dist.broadcast(torch.zeros(3), src=0)),
            raised(dist.broadcast_object_list, [1], src=0),
            raised(dist.scatter, part, parts, src=0),
        ]
        with lofi.scope("world"):
            dist.broadcast(part, src=0)
        train(model, 1, first=1)
        return errors, lofi.stats()["collectives"]["node"]["training"]


def test_strict_refuses_what_crosses_nodes():
    for errors, _ in run_nodes(_strict, env={"LOFI_STRICT": "1"}):
        for error, name in zip(errors, ("broadcast", "broadcast", "scatter"), strict=True):
            assert "RuntimeError" in error.kinds and name in error.text, error
            assert "LOFI_STRICT" in error.text and 'lofi.scope("world")' in error.text, error


def _decides_in_every_step(steps: int, numel: int) -> Any:
    import lofi

    with job():
        model = wrapped()
        rank, seen = dist.get_rank(), []
        with captured_stderr() as stderr:
            for step in range(steps):
                train(model, 1)
                stop = torch.full((numel,), float(10 * step + rank))
                dist.broadcast(stop, src=1)
                seen.append(int(stop[0]) - 10 * step)
            objects = [rank]
            dist.broadcast_object_list(objects, src=1)
        said = stderr.lines("comes in every step")
        return seen, objects, said, lofi.stats()["cross_bytes"]["training"]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("steps", "numel", "told"), [(5, 1, True), (2, 1, False), (5, 2000, False)]
)
def test_a_small_broadcast_of_every_step_is_said_once(steps, numel, told):
    results = run_nodes(_decides_in_every_step, steps, numel)
    for rank, (seen, _, said, _) in enumerate(results):
        assert seen == [1] * steps
        assert len(said) == (1 if told and rank == 0 else 0), said
    if told:
        assert "LOFI_NODE_CALLS=test_crossing.py:" in results[0][2][0]
