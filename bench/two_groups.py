# SPDX-License-Identifier: MIT
"""A job of ranks on this machine with a lofi and a gloo group of all of them, for benchmarks."""

import csv
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lofi  # noqa: F401 - known by its name also where it is not installed
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _rank_main(
    rank: int, function: Callable, arguments: Any, world_size: int, port: int, results: Any
) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    dist.init_process_group("lofi")
    groups = {kind: dist.new_group(backend=kind) for kind in ("gloo", "lofi")}
    measured = function(groups, *arguments)
    if rank == 0:
        results.put(measured)
    dist.barrier()
    dist.destroy_process_group()


def run(function: Callable, world_size: int, *arguments: Any) -> Any:
    """`function(groups, *arguments)` in every rank; what it returns on the first one."""
    return spawn(_rank_main, function, world_size, *arguments)


def spawn(rank_main: Callable, function: Callable, world_size: int, *arguments: Any) -> Any:
    """`rank_main(rank, function, arguments, world_size, port, results)` in every rank; what one of
    them puts into `results`. A rank that fails ends the others, and raises here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    ranks = mp.spawn(
        rank_main, (function, arguments, world_size, port, results), world_size, join=False
    )
    while results.empty() and not ranks.join(timeout=1):
        pass
    measured = results.get()
    while not ranks.join():
        pass
    return measured


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")
