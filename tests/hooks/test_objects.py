# SPDX-License-Identifier: MIT
"""broadcast_object_list where a library, not the script, keeps the ranks of a node alike."""

from typing import Any

import torch.distributed as dist
from harness.rank_jobs import job, run_nodes, train, wrapped


def _of_a_library(root: int) -> Any:
    import lofi
    from lofi.job.phases import by_wrapper

    with job():
        train(wrapped(), 1)
        rank = dist.get_rank()
        with by_wrapper():
            # Each rank has something of another length, so that a wrong root shows.
            by_world = [f"{rank}" * (100 * rank + 1), rank]
            dist.broadcast_object_list(by_world, src=root)
            by_group = [{"rank": rank}]
            dist.broadcast_object_list(by_group, group_src=root)
        return by_world, by_group, lofi.stats()["cross_bytes"]["training"]


def test_each_node_gets_the_objects_of_its_own_root():
    for root in (0, 3):
        for rank, (by_world, by_group, crossed) in enumerate(run_nodes(_of_a_library, root)):
            image = rank // 2 * 2 + root % 2
            assert by_world == [f"{image}" * (100 * image + 1), image]
            assert by_group == [{"rank": image}]
            assert crossed == 0
