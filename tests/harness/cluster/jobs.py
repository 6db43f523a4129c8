# SPDX-License-Identifier: MIT
"""A job: the processes of one run on a cluster, their logs, their marks and their deadline."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.cluster.leftovers import KILL_SECONDS
from harness.cluster.marks import Counters, read_marks

TAIL_LINES = 25
GRACE_SECONDS = 3.0
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Result:
    """How one process ended. `rank` is None for torchrun's own process, one in each node."""

    node: int
    rank: int | None
    returncode: int
    killed: bool
    stdout: str
    stderr: str

    @property
    def label(self) -> str:
        """Which process this was, for messages."""
        return f"node {self.node}" + ("" if self.rank is None else f" rank {self.rank}")


@dataclass(frozen=True)
class Run:
    """A finished job: its results by rank, wall seconds, bytes by node, and why it was stopped."""

    results: list[Result]
    seconds: float
    traffic: list[Counters]
    stopped: str = ""


class RunError(RuntimeError):
    """A job failed or ran out of time; `run` holds what there is."""

    def __init__(self, run: Run) -> None:
        self.run = run
        super().__init__(_describe(run))


def _describe(run: Run) -> str:
    parts = [run.stopped or f"failed after {run.seconds:.1f} s"]
    for result in run.results:
        state = "killed" if result.killed else f"exit {result.returncode}"
        parts.append(f"--- {result.label}: {state}")
        for name, text in (("stdout", result.stdout), ("stderr", result.stderr)):
            parts += [f"{name}| {line}" for line in text.splitlines()[-TAIL_LINES:]]
    return "\n".join(parts)


@dataclass(frozen=True)
class Process:
    """One started process of a job."""

    node: int
    rank: int | None
    popen: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path


@dataclass
class Job:
    """Processes under way. `processes[i].popen` may be sent signals; `wait` collects them all."""

    directory: Path
    counters: Callable[[], list[Counters]]
    kill: Callable[[], None]
    processes: list[Process] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    before: list[Counters] = field(default_factory=list)

    def wait(self, timeout: float, check: bool = True) -> Run:
        """Wait until all processes have ended, at most until `timeout` seconds after the start.

        At the deadline the rest is killed. With `check`, that and any exit code but 0 raise
        RunError with the tails of the logs; and once one process has failed the others get a few
        seconds more, not the whole time. Without `check`, all have until the deadline, and
        `Run.stopped` says if it was reached.
        """
        stopped = ""
        try:
            stopped = self._wait(self.started + timeout, check)
            killed = {p.popen.pid for p in self.processes if p.popen.poll() is None}
        finally:
            # Also what the processes left behind: torchrun's workers outlive a killed torchrun.
            self.kill()
            for process in self.processes:
                process.popen.wait(KILL_SECONDS)
        run = Run(
            results=[_result(p, p.popen.pid in killed) for p in self.processes],
            seconds=time.monotonic() - self.started,
            traffic=_difference(self.counters(), self.before),
            stopped=stopped,
        )
        if check and (stopped or any(r.returncode for r in run.results)):
            raise RunError(run)
        return run

    def _wait(self, deadline: float, check: bool) -> str:
        failed_at = None
        while any(code is None for code in self._codes()):
            now = time.monotonic()
            if now > deadline:
                return f"out of time after {now - self.started:.1f} s"
            if check and any(self._codes()):
                failed_at = failed_at or now
                if now > failed_at + GRACE_SECONDS:
                    return f"stopped {GRACE_SECONDS:.0f} s after the first failure"
            time.sleep(POLL_SECONDS)
        return ""

    def _codes(self) -> list[int | None]:
        return [p.popen.poll() for p in self.processes]

    def marks(self) -> dict[str, dict[int, dict]]:
        """Marks so far: {name: {node: {rank, time, tx_bytes, rx_bytes}}}.

        Of each node the mark of its first rank that has set it; `rank_marks` has all.
        """
        found: dict[str, dict[int, dict]] = {}
        for record in self.rank_marks():
            found.setdefault(record["name"], {}).setdefault(record["node"], record)
        return found

    def rank_marks(self) -> list[dict]:
        """Every record, by name and rank."""
        return read_marks(self.directory)

    def wait_for_mark(self, name: str, timeout: float, count: int | None = None) -> None:
        """Wait until `count` processes (all, if not given) have set the mark `name`."""
        wanted = len(self.processes) if count is None else count
        deadline = time.monotonic() + timeout
        while sum(r["name"] == name for r in self.rank_marks()) < wanted:
            ended = any(code is not None for code in self._codes())
            if ended or time.monotonic() > deadline:
                why = "a process ended" if ended else f"{timeout:.0f} s passed"
                raise TimeoutError(f"{why} before {wanted} ranks had set the mark {name!r}")
            time.sleep(POLL_SECONDS)


def _result(process: Process, killed: bool) -> Result:
    return Result(
        node=process.node,
        rank=process.rank,
        returncode=process.popen.returncode,
        killed=killed,
        stdout=process.stdout.read_text(encoding="utf-8", errors="replace"),
        stderr=process.stderr.read_text(encoding="utf-8", errors="replace"),
    )


def _difference(after: list[Counters], before: list[Counters]) -> list[Counters]:
    return [{key: a[key] - b[key] for key in a} for a, b in zip(after, before, strict=True)]
