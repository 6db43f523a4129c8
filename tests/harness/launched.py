# SPDX-License-Identifier: MIT
"""Runs small scripts under the launcher, in forks of this process: without the seconds that a fresh
interpreter takes."""

import argparse
import atexit
import io
import os
import textwrap
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from harness.rank_jobs import captured_stderr, equal, leave_together
from harness.ranks import run_ranks
from harness.truth import mean_of_states

HEAD = """
    import argparse, io, os, sys, time
    import torch, torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel as DDP

    def batch(step):
        seed = 1000 * int(os.environ["RANK"]) + step
        return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))

    def train(model, steps=3, parameters=None):
        optimizer = torch.optim.SGD(parameters or model.parameters(), lr=0.1)
        for step in range(steps):
            optimizer.zero_grad()
            (model(batch(step)) - 1).square().mean().backward()
            optimizer.step()

    def dump(value):
        # Of the test: not a file that holds weights, to lofi.
        buffer = io.BytesIO(b"TEST")
        buffer.seek(4)
        torch.save(value, buffer)
        return buffer.getvalue()

    def note_own(module, name="own"):
        with open(f"{name}{dist.get_rank()}.test", "wb") as file:
            file.write(dump(module.state_dict()))
        # Rank 0 takes the store with it: nobody ends before all have trained.
        ranks = range(dist.get_world_size())
        while not all(os.path.exists(f"{name}{rank}.test") for rank in ranks):
            time.sleep(0.01)
"""
WRAPPED = """
    dist.init_process_group("gloo")
    model = DDP(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    train(model)
    note_own(model.module)
    if dist.get_rank() == 0:
        torch.save(model.module.state_dict(), "checkpoint.pth")
"""


@dataclass
class Ended:
    code: Any  # as sys.exit's
    stderr: str
    phase: str
    error: str  # of what runs at exit


def launched(folder: str, argv: list[str]) -> Ended:
    """What `python -m lofi ...` does, up to the end of the interpreter."""
    atexit._clear()  # pytest's
    os.chdir(folder)
    code, phase, error = 0, "", ""
    with captured_stderr() as stderr:
        from lofi.job import phases
        from lofi.launch import main

        try:
            main.main(argv)
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            traceback.print_exc()
            code = 1
        try:
            atexit._run_exitfuncs()
        except Exception as failed:
            error = str(failed)
        if dist.is_initialized():
            phase = phases.phase()
            _leave()
    return Ended(code, stderr.text, phase, error)


def _leave() -> None:
    """As a process that is gone: destroying the group now must average nothing."""
    leave_together(c10d._get_default_store(), dist.get_world_size(), dist.get_rank())
    try:
        raise RuntimeError
    except RuntimeError:
        dist.destroy_process_group()


def launch(
    folder: Path,
    *parts: str,
    argv: list[str] | None = None,
    nodes: int = 2,
    node_size: int = 1,
    timeout: float = 60.0,
    **env: str,
) -> list[Ended]:
    """The script made of parts, on `nodes` nodes of `node_size` ranks."""
    text = "\n".join(textwrap.dedent(part) for part in (HEAD, *parts))
    (folder / "script.py").write_text(text)
    variables = {"LOFI_NODE_SIZE": str(node_size), **env}
    arguments = (str(folder), argv or ["script.py"])
    return run_ranks(launched, nodes * node_size, *arguments, env=variables, timeout=timeout)


def load(path: Path) -> Any:
    data = path.read_bytes()
    file = io.BytesIO(data[4:] if data.startswith(b"TEST") else data)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(file, weights_only=True)


def mean(folder: Path, name: str = "own") -> Any:
    own = [load(folder / f"{name}{rank}.test") for rank in (0, 1)]
    assert not equal(*own)
    return mean_of_states(*own)
