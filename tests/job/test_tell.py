# SPDX-License-Identifier: MIT
"""What all ranks of a job, or of a node, have to say is printed once."""

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from harness.rank_jobs import captured_stderr, job, net, run_nodes, train, wrapped


def _checkpoint(folder: str) -> Any:
    with job(), captured_stderr() as stderr:
        model = wrapped()
        train(model, 1)
        for name in ("a", "b"):
            dcp.save({"model": model.module.state_dict()}, checkpoint_id=f"{folder}/{name}")
    return stderr.lines("torch.distributed.checkpoint while nodes train apart")


def test_once_a_job(tmp_path):
    counts = [len(lines) for lines in run_nodes(_checkpoint, str(tmp_path))]
    assert counts == [1, 0, 0, 0]


def _unwrapped() -> Any:
    with job(), captured_stderr() as stderr:
        model = net()
        train(model, 1, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    return stderr.lines("nothing is wrapped")


def test_a_loop_that_wraps_nothing_is_told_once():
    assert [len(lines) for lines in run_nodes(_unwrapped)] == [1, 0, 0, 0]


def _unknown() -> Any:
    with captured_stderr() as stderr, job():
        pass
    return stderr.lines("LOFI_TIMEOUTS is not a setting")


def test_once_a_node():
    lines = run_nodes(_unknown, env={"LOFI_TIMEOUTS": "3"})
    assert [len(of_rank) for of_rank in lines] == [1, 0, 1, 0]


def _bypass() -> Any:
    with job(), captured_stderr() as stderr:
        dist.new_group([1, 2], backend="gloo")
        dist.new_group([0, 1], backend="gloo")
    return stderr.lines("a group of backend 'gloo' spans 2 nodes")


def test_once_a_group():
    assert [len(lines) for lines in run_nodes(_bypass)] == [0, 1, 0, 0]
