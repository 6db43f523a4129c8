# SPDX-License-Identifier: MIT
"""Ranks for tests: forks of this process, which has torch imported already.

    results = run_ranks(function, 4, arg, env={"LOFI_NODE_SIZE": "2"})

calls function(arg) in four processes with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT
set as torchrun sets them, and returns what each returned (pickled). If a rank raises, its traceback
is raised here; what is still running at the deadline is killed, and the ranks that hung are named.
A fork is ready in milliseconds, where a fresh interpreter takes seconds to import torch. The parent
must run no torch operation on several threads before.

No rank leaves before all have a result: one that ends takes its connections with it, which others
may still read from. Rank 0, which holds the store, leaves last.
"""

import contextlib
import faulthandler
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import torch
import torch._dynamo  # DDP's constructor imports it (seconds): once here, not in every rank
import torch.distributed as dist

torch.set_num_threads(1)


@dataclass
class Failed:
    """A rank that raised; run_ranks(..., may_fail=True) returns it in place of a result."""

    type: str
    text: str
    traceback: str

    def __str__(self) -> str:
        return f"{self.type}: {self.text}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    env: dict[str, str] | None = None,
    rank_env: Callable[[int], dict[str, str]] | None = None,
    timeout: float = 60.0,
    may_fail: bool = False,
) -> list[Any]:
    """Run function(*args) in `world_size` ranks. `rank_env(rank)` adds variables of one rank."""
    port = free_port()
    pipes: list[Connection] = []
    pids: list[int] = []
    sys.stdout.flush()
    sys.stderr.flush()
    for rank in range(world_size):
        parent, child = Pipe()
        pid = os.fork()
        if pid == 0:
            for pipe in (*pipes, parent):
                pipe.close()  # so that all ranks see it when their parent ends
            variables = _variables(rank, world_size, port)
            variables.update(env or {})
            variables.update(rank_env(rank) if rank_env else {})
            faulthandler.dump_traceback_later(timeout / 2)  # where a rank hangs, on stderr
            _run_rank(function, args, variables, child)
        child.close()
        pids.append(pid)
        pipes.append(parent)
    try:
        results = _collect(pipes, time.monotonic() + timeout)
    finally:
        for first in (1, 0):  # rank 0 alone comes second
            _release(pipes[first:])
            _end(pids[first:])
            del pids[first:], pipes[first:]
    if not may_fail:
        for rank, result in enumerate(results):
            if isinstance(result, Failed):
                raise AssertionError(f"rank {rank} of {world_size}:\n{result.traceback}")
    return results


def _variables(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _run_rank(
    function: Callable[..., Any], args: Any, variables: dict[str, str], pipe: Connection
) -> None:
    """In the child: never returns."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)  # makes the pool anew that a fork breaks, before threads race to it
    os.environ.update(variables)
    result: Any
    try:
        result = function(*args)
    except BaseException as error:
        result = Failed(type(error).__name__, str(error), traceback.format_exc())
    try:
        pipe.send_bytes(pickle.dumps(result))
        faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(EOFError, ConnectionError):
            pipe.recv_bytes()  # the parent's word to leave, or its end
        if dist.is_initialized():
            dist.destroy_process_group()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _collect(pipes: list[Connection], deadline: float) -> list[Any]:
    results: list[Any] = [None] * len(pipes)
    waiting = dict(zip(pipes, range(len(pipes)), strict=True))
    while waiting:
        ready = wait(list(waiting), timeout=max(deadline - time.monotonic(), 0))
        if not ready:
            done = {rank: r for rank, r in enumerate(results) if isinstance(r, Failed)}
            raise AssertionError(
                f"ranks {sorted(waiting.values())} hang; failures so far: "
                f"{ {rank: str(r) for rank, r in done.items()} }"
            )
        for pipe in ready:
            rank = waiting.pop(pipe)
            try:
                results[rank] = pickle.loads(pipe.recv_bytes())
            except (EOFError, ConnectionError):
                results[rank] = Failed("Died", "the process ended without a result", "it died")
    return results


def _release(pipes: list[Connection]) -> None:
    for pipe in pipes:
        with contextlib.suppress(OSError):  # it may have died
            pipe.send_bytes(b"leave")
        pipe.close()


def _end(pids: list[int]) -> None:
    """Reap the ranks; those that do not end within seconds are killed."""
    deadline = time.monotonic() + 5
    for pid in pids:
        while True:
            ended, _ = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
