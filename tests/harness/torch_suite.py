# SPDX-License-Identifier: MIT
"""PyTorch's own tests of process groups, from the installed torch, with lofi where gloo was meant.

They are methods of one class. PyTorch starts fresh processes for each; here one set of ranks runs
many, each in a default group of its own.
"""

import os
import tempfile
import traceback
from pathlib import Path
from typing import Any
from unittest import SkipTest, mock

import torch
import torch.distributed as dist


def run_tests(names: list[str]) -> dict[str, str]:
    """What became of each: "passed", "skipped", "not in this torch", or a traceback. A rank calls
    this."""
    with tempfile.TemporaryDirectory() as folder:
        suite = _load(_shared(folder))
        return {name: _outcome(suite, name, number) for number, name in enumerate(names)}


def _shared(own: str) -> str:
    """The first rank's folder, on every rank."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, size, rank == 0)
    if rank == 0:
        for name in ("barrier", "test_dir", "init_dir"):
            os.mkdir(Path(own, name))
        store.set("folder", own)
    stores.append(store)
    return store.get("folder").decode()


stores: list[Any] = []  # alive as long as the rank: the first one's serves the others


def _load(folder: str) -> Any:
    os.environ.update(BACKEND="gloo", TEMP_DIR=folder, INIT_METHOD=f"file://{folder}/init")
    from torch.testing._internal.common_utils import TestCase
    from torch.testing._internal.distributed import distributed_test as module

    class Suite(module.DistributedTest._DistTestBase, TestCase):
        rank = property(lambda self: dist.get_rank())
        world_size = property(lambda self: dist.get_world_size())

        def runTest(self) -> None:
            """It has to have one to be made without a name."""

    module.get_profiling_event = _events
    return Suite


def _events(name: str, profiler: Any, dedup_gpu_user_annotation: bool = False) -> list[Any]:
    """PyTorch's function of this name, which takes lofi's events for gloo's."""
    is_new = isinstance(profiler, torch.profiler.profile)
    events = profiler.events() if is_new else profiler.function_events
    names = [(event, event.name.replace("lofi:", "gloo:")) for event in events]
    return [event for event, own in names if own.startswith(name) or own.endswith(name)]


def _as_gloo(group: Any = None) -> str:
    return "gloo"


def _outcome(suite: Any, name: str, number: int) -> str:
    if not hasattr(suite, name):
        return "not in this torch"
    store = dist.PrefixStore(f"test{number}", stores[0])
    dist.init_process_group(
        "lofi",
        store=store,
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    # Those of sub-groups want 8 ranks, and use 3 of them.
    size = {"WORLD_SIZE": "8"} if dist.get_world_size() > 2 else {}
    try:
        # What is supported the tests know by the name.
        with mock.patch.object(dist, "get_backend", _as_gloo), mock.patch.dict(os.environ, size):
            getattr(suite(), name)()
        dist.barrier()
        return "passed"
    except (SkipTest, SystemExit):
        return "skipped"
    except Exception:
        return traceback.format_exc()
    finally:
        dist.destroy_process_group()
