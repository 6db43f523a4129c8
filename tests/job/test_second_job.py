# SPDX-License-Identifier: MIT
"""A second job in one process begins as the first did."""

import os
from typing import Any

import torch.distributed as dist
from harness import truth
from harness.rank_jobs import (
    check_all_equal,
    check_apart,
    equal,
    job,
    raised,
    run_nodes,
    train,
    weights,
    wrapped,
)


def _two_jobs(folder: str) -> Any:
    import lofi

    results = []
    ranks = {"rank": int(os.environ["RANK"]), "world_size": 4}
    for number in range(2):
        with job(init_method=f"file://{folder}/{number}", **ranks):
            stats = lofi.stats()
            model = wrapped(seed=10 * number + dist.get_rank())
            start = weights(model)
            train(model, 2)
            own = weights(model)
            lofi.finalize_average(model)
            results.append((stats, start, own, weights(model), lofi.phase()))
        no_group = raised(lofi.stats)
        assert no_group.type == "RuntimeError" and "no process group yet" in no_group.text
    return results


def test_destroying_the_group_and_making_it_again(tmp_path):
    ranks = run_nodes(_two_jobs, str(tmp_path))
    for number in range(2):
        jobs = [results[number] for results in ranks]
        check_all_equal([start for _, start, *_ in jobs])
        check_apart([own for _, _, own, *_ in jobs])
        for stats, _, _, average, phase in jobs:
            assert stats["phase"] == "setup"
            assert sum(stats["cross_bytes"].values()) == 0
            assert equal(average, truth.mean_of_states(jobs[0][2], jobs[2][2]))
            assert phase == "done"
