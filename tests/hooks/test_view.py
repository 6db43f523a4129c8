# SPDX-License-Identifier: MIT
"""Code that takes its node for the world while nodes train apart (LOFI_NODE_CALLS)."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_fn
from harness.rank_jobs import captured_stderr, job, raised, run_nodes, train, wrapped
from torch.distributed import all_gather, broadcast, get_rank, get_world_size  # names of its own


def _everything() -> dict[str, Any]:
    """The collectives of torch.distributed as this rank sees them from here."""
    seen: dict[str, Any] = {"rank": get_rank(), "size": get_world_size()}
    seen["dist's"] = dist.get_rank(), dist.get_world_size(dist.group.WORLD)
    mine = torch.full((2,), float(get_rank()))
    outputs = [torch.empty(2) for _ in range(get_world_size())]
    all_gather(outputs, mine)
    seen["all_gather"] = [int(output[0]) for output in outputs]
    total = mine.clone()
    dist.all_reduce(total)
    seen["all_reduce"] = total.tolist()
    flag = torch.tensor([7.0 if get_rank() == 0 else 0.0])
    broadcast(flag, src=0)
    seen["broadcast"] = flag.item()
    objects = [f"of {get_rank()}" if get_rank() == 1 else None]
    dist.broadcast_object_list(objects, src=1)
    seen["objects"] = objects
    everyone: list[Any] = [None] * get_world_size()
    dist.all_gather_object(everyone, {"rank": get_rank()})
    seen["everyone"] = [word["rank"] for word in everyone]
    return seen


def _of_the_node() -> Any:
    import lofi

    with job():
        at_setup = get_rank(), get_world_size()
        train(wrapped(), 1)
        seen = _everything()
        with lofi.scope("world"):
            real = get_rank(), get_world_size()
        return at_setup, seen, real, lofi.stats()["cross_bytes"]["training"]


@pytest.mark.quick
@pytest.mark.parametrize("strict", ["0", "1"])
@pytest.mark.parametrize("places", ["test_view.py", "x.py, hooks", "all"])
def test_listed_code_sees_its_node(places, strict):
    env = {"LOFI_NODE_CALLS": places, "LOFI_STRICT": strict}
    for rank, (at_setup, seen, real, crossed) in enumerate(run_nodes(_of_the_node, env=env)):
        place = rank % 2
        assert at_setup == real == (rank, 4)
        assert crossed == 0
        assert seen == {
            "rank": place,
            "size": 2,
            "dist's": (place, 2),
            "all_gather": [0, 1],
            "all_reduce": [1.0, 1.0],
            "broadcast": 7.0,
            "objects": ["of 1"],
            "everyone": [0, 1],
        }


def _as_ever() -> Any:
    with job():
        train(wrapped(), 1)
        return get_rank(), dist.get_world_size()


@pytest.mark.parametrize("places", ["", "view.py", "test_view", "ooks", "test_view.py:1"])
def test_all_other_code_sees_the_world(places):
    results = run_nodes(_as_ever, env={"LOFI_NODE_CALLS": places})
    assert results == [(rank, 4) for rank in range(4)]


def _other_groups() -> Any:
    with job():
        crossing, inside = dist.new_group([0, 2]), dist.new_group([2, 3])
        train(wrapped(), 1)
        return (
            dist.get_rank(crossing),
            dist.get_world_size(crossing) if dist.get_rank(crossing) >= 0 else 0,
            dist.get_rank(inside),
            raised(lambda: broadcast(torch.zeros(1), src=2)),
        )


def test_groups_that_it_names_are_as_ever_and_ranks_of_others_are_told():
    results = run_nodes(_other_groups, env={"LOFI_NODE_CALLS": "test_view.py"})
    assert [result[:3] for result in results] == [(0, 2, -1), (-1, 0, -1), (1, 2, 0), (-1, 0, 1)]
    for *_, error in results:
        assert error.type == "ValueError" and "there are ranks 0 to 1" in error.text


def _gathers_features(numel: int) -> Any:
    with job():
        model = wrapped()
        with captured_stderr() as stderr:
            for step in range(5):
                train(model, 1, first=step)
                if numel:
                    dist_fn.all_gather(torch.ones(2, numel, requires_grad=True))
                dist.all_reduce(torch.ones(3))
                outputs = [torch.empty(1) for _ in range(get_world_size())]
                all_gather(outputs, torch.ones(1))  # of a loss that is logged
        return stderr.lines("comes in every step")


def test_gathers_of_features_are_told_once():
    told = run_nodes(_gathers_features, 8)
    assert [len(lines) for lines in told] == [1, 0, 0, 0]
    assert "LOFI_NODE_CALLS=test_view.py" in told[0][0] and "2 times" in told[0][0]
    assert run_nodes(_gathers_features, 0) == [[], [], [], []]
    listed = run_nodes(_gathers_features, 8, env={"LOFI_NODE_CALLS": "test_view.py"})
    assert listed == [[], [], [], []]
