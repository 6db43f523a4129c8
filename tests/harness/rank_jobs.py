# SPDX-License-Identifier: MIT
"""What small training jobs of the tests share: a group that its ranks leave together, steps on data
that depends on the rank, what a rank wrote to stderr, and what it raised."""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d as c10d
from torch.nn.parallel import DistributedDataParallel as DDP

from harness.ranks import run_ranks

WIDTH = 8
Weights = dict[str, torch.Tensor]


def run_nodes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """function(*args) on 2 nodes of 2 ranks."""
    env = {"LOFI_NODE_SIZE": "2", **kwargs.pop("env", {})}
    return run_ranks(function, 4, *args, env=env, **kwargs)


@contextlib.contextmanager
def job(backend: str | None = "lofi", timeout: float = 20.0, **kwargs: Any) -> Iterator[None]:
    """A default group. Its ranks leave together: one that ends takes its connections with it, and
    rank 0 the store."""
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **kwargs)
    store, size, rank = c10d._get_default_store(), dist.get_world_size(), dist.get_rank()
    try:
        yield
    finally:
        leave_together(store, size, rank)
        if dist.is_initialized():
            dist.destroy_process_group()


def leave_together(store: Any, size: int, rank: int) -> None:
    store = dist.PrefixStore("tests/leave", store)
    for stage in ("done", "gone"):
        store.add(stage, 1)
        deadline = time.monotonic() + 15
        while stage == "done" or rank == 0:
            if store.add(stage, 0) >= size or time.monotonic() > deadline:
                break
            time.sleep(0.005)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 4))


def wrapped(seed: int | None = None, build: Callable[[], nn.Module] = net) -> DDP:
    """A model that each rank begins with weights of its own, in DDP."""
    torch.manual_seed(dist.get_rank() if seed is None else seed)
    return DDP(build())


def batch(rank: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(6, WIDTH, generator=generator)


def train(
    model: Any, steps: int, rank: int | None = None, optimizer: Any = None, first: int = 0
) -> None:
    """Steps on data that depends on the rank and the step."""
    rank = dist.get_rank() if rank is None else rank
    if optimizer is None:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        (model(batch(rank, step)) - 1).pow(2).mean().backward()
        optimizer.step()


def weights(model: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def equal(a: Weights, b: Weights) -> bool:
    """To the bit."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def check_apart(own: list[Weights]) -> None:
    """2 nodes of 2 ranks: ranks inside a node are equal, nodes are not."""
    assert equal(own[0], own[1]) and equal(own[2], own[3])
    assert not equal(own[0], own[2])


def check_all_equal(values: list[Weights]) -> None:
    assert all(equal(value, values[0]) for value in values)


@dataclass
class Raised:
    type: str
    text: str
    seconds: float
    kinds: list[str]  # its classes: NotImplementedError is a RuntimeError

    def __str__(self) -> str:
        return f"{self.type} after {self.seconds:.1f} s: {self.text}"


def raised(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Raised | None:
    """What function(*args) raised, and when; None if it returned."""
    begin = time.monotonic()
    try:
        function(*args, **kwargs)
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return Raised(kinds[0], str(error), time.monotonic() - begin, kinds)
    return None


class Stderr:
    text = ""

    def lines(self, part: str) -> list[str]:
        return [line for line in self.text.splitlines() if part in line]


@contextlib.contextmanager
def captured_stderr() -> Iterator[Stderr]:
    """What this process writes to stderr, from C too."""
    result = Stderr()
    with tempfile.TemporaryFile("w+b") as file, open(os.dup(file.fileno()), "w") as text:
        former = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(text):
                yield result
        finally:
            text.flush()
            os.dup2(former, 2)
            os.close(former)
            file.seek(0)
            result.text = re.sub(r"\x1b\[[0-9;]*m", "", file.read().decode(errors="replace"))
