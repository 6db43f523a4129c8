# SPDX-License-Identifier: MIT
"""torch.distributed.checkpoint: while nodes train apart, a checkpoint holds one model."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from harness.rank_jobs import (
    check_apart,
    equal,
    job,
    net,
    run_nodes,
    train,
    weights,
    wrapped,
)


def _dcp(folder: str) -> Any:
    import lofi

    with job():
        model = wrapped()
        dcp.save({"model": model.module.state_dict()}, checkpoint_id=f"{folder}/setup")
        start = weights(model.module)
        train(model, 3)
        own = weights(model.module)
        dcp.save({"model": model.module.state_dict()}, checkpoint_id=f"{folder}/train")
        future = dcp.async_save(
            {"model": model.module.state_dict()}, checkpoint_id=f"{folder}/async"
        )
        future.result()
        # Files of node 0's: the other node may come to a load before they are whole.
        with lofi.scope("world"):
            dist.barrier()

        loaded = {}
        for name in ("setup", "train", "async"):
            state = {"model": net().state_dict()}
            dcp.load(state, checkpoint_id=f"{folder}/{name}")
            loaded[name] = state["model"]
        crossed = lofi.stats()["cross_bytes"]["training"]

        lofi.finalize_average(model)
        average = weights(model.module)
        dcp.save({"model": model.module.state_dict()}, checkpoint_id=f"{folder}/done")
        state = {"model": net().state_dict()}
        dcp.load(state, checkpoint_id=f"{folder}/done")
        loaded["done"] = state["model"]
        return start, own, average, loaded, crossed


@pytest.mark.quick
def test_distributed_checkpoints_hold_one_model(tmp_path):
    results = run_nodes(_dcp, str(tmp_path))
    first_node = results[0][1]
    check_apart([own for _, own, *_ in results])
    for start, _, average, loaded, crossed in results:
        assert equal(loaded["setup"], start)
        assert equal(loaded["train"], first_node)
        assert equal(loaded["async"], first_node)
        assert equal(loaded["done"], average)
        assert crossed == 0


def _dcp_by_everyone(folder: str) -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 2)
        # Something that is every rank's own: only a save by all ranks has it all.
        mine = {f"rank{dist.get_rank()}": torch.full((3,), float(dist.get_rank()))}
        with lofi.scope("world"):
            dcp.save(mine, checkpoint_id=folder)
            state = {f"rank{rank}": torch.zeros(3) for rank in range(4)}
            dcp.load(state, checkpoint_id=folder)
        return state


def test_at_world_scope_a_distributed_checkpoint_is_everyones(tmp_path):
    for state in run_nodes(_dcp_by_everyone, str(tmp_path)):
        assert [state[f"rank{r}"].tolist() for r in range(4)] == [[float(r)] * 3 for r in range(4)]


def _mixtures(folder: str) -> Any:
    import lofi

    def message_of(state: Any, name: str) -> str:
        try:
            with lofi.scope("world"):
                dcp.save(state, checkpoint_id=f"{folder}/{name}")
        except RuntimeError as error:
            return str(error)
        return ""

    with job():
        model = wrapped()
        train(model, 2)
        mine = {"only": {f"rank{dist.get_rank()}": torch.ones(2)}}
        models = message_of({"model": model.module.state_dict(), **mine}, "models")
        common = message_of({"counts": torch.arange(3), "scale": torch.ones(()), **mine}, "common")
        lofi.finalize_average(model)
        average = message_of({"model": model.module.state_dict()}, "average")
        return models, common, average


def test_at_world_scope_a_mixture_of_models_is_refused(tmp_path):
    for models, common, average in run_nodes(_mixtures, str(tmp_path)):
        assert "model." in models and "nodes 0 and 1" in models
        assert "lofi.averaged(model)" in models
        assert common == average == ""
    assert not (tmp_path / "models" / ".metadata").exists()
    assert (tmp_path / "common" / ".metadata").exists()
