# SPDX-License-Identifier: MIT
"""The creator that torch.distributed calls for each lofi group."""

import atexit
import functools
import json
import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from lofi import features
from lofi.groups import inner, lookup, node_group
from lofi.job import config, job
from lofi.job.log import log, set_first, tell
from lofi.job.native import _C


def create(options: Any, backend_options: Any = None) -> Any:
    """Extended creator: `global_ranks_in_group` places a sub-group; the default's is []."""
    if getattr(options, "enable_reconfigure", False):
        raise ValueError("lofi: enable_reconfigure is not supported: nodes are fixed at start")
    ranks = list(options.global_ranks_in_group)
    if not ranks:
        _begin_world(options.store, options.group_rank, options.group_size, options.timeout)
    elif job.current().topology is None:
        _begin_from_group(options, ranks)
    features.install(is_launched=False)
    name, parent = str(options.group_id), _split_parent(options)
    return inner.make_backend(options.store, ranks, options.timeout, name, backend_options, parent)


def _split_parent(options: Any) -> Any:
    """The connected backend of the node that all its ranks split now, where torch finds one.

    torch asks ranks that are not in the group for perform_nocolor_split on the same condition.
    """
    if not options.global_ranks_in_group or dist.group.WORLD is None:
        return None
    if node_group.MARK in str(options.group_id):  # made by its members alone
        return None
    device = dist.group.WORLD.bound_device_id
    if device is None or device.type == "cpu":
        return None
    # Before torch 2.14 a plug-in is not told which group is split.
    whole = getattr(options, "split_from", lookup.backend_of(None))
    return whole.inner(device.type, "node") if isinstance(whole, _C.BackendLofi) else None


def _begin_world(store: Any, rank: int, size: int, timeout: timedelta) -> None:
    job.next_job()
    store = job.own_store(store)
    problem = ""
    settings = config.Settings()
    try:
        settings = config.read()
    except ValueError as error:
        problem = str(error)  # told to every rank, so that none waits for this one
    topology = _C.Topology(
        store, rank, size, settings.node_size, settings.shared(), problem, timeout
    )
    job.begin(topology, settings, store)
    set_first(of_job=rank == 0, of_node=job.current().place == 0)
    for sentence in config.unknown_variables():
        tell("warn", sentence, of="node")
    if rank == 0:
        log(
            "info",
            f"nodes {topology.node_count} ranks per node {topology.node_size} "
            f"from {topology.source}; {_C.build_info()}",
        )
    _write_stats_at_exit(rank)


def _begin_from_group(options: Any, ranks: list[int]) -> None:
    """backend="lofi" for a sub-group only: the nodes are still those of the whole world."""
    if len(ranks) != dist.get_world_size():
        raise ValueError(
            f"lofi: a group of ranks {ranks} was asked for before lofi knows the nodes of the "
            'world: use init_process_group(backend="lofi"), or make a lofi group of all ranks first'
        )
    _begin_world(options.store, dist.get_rank(), len(ranks), options.timeout)


@functools.cache  # of the first default group of this process
def _write_stats_at_exit(rank: int) -> None:
    """LOFI_STATS=path: each rank writes path.rank<r>.json, stats() as the process ends."""
    path = os.environ.get("LOFI_STATS")
    if not path:
        return

    def write() -> None:
        try:
            with open(f"{path}.rank{rank}.json", "w") as file:
                json.dump(_C.stats(), file, indent=1)
        except OSError as error:
            log("error", f"LOFI_STATS: {error}")

    atexit.register(write)
