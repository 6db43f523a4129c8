# SPDX-License-Identifier: MIT
"""The job of this process: it begins with the default process group and ends with the next one."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch.distributed as dist

from lofi.job.native import _C

State = TypeVar("State")


@dataclass
class Job:
    topology: Any = None  # _C.Topology; None: there is no group of lofi's yet
    settings: Any = None  # lofi.job.config.Settings, where there is a topology
    store: Any = None  # of the group that found the topology
    pid: int = field(default_factory=os.getpid)  # a fork has this object, and no part in the job

    @property
    def rank(self) -> int:
        return self.topology.rank

    @property
    def node(self) -> int:
        return self.topology.node

    @property
    def place(self) -> int:
        """This rank's position among the ranks of its node."""
        return self.rank % self.topology.node_size

    @property
    def spans_nodes(self) -> bool:
        return self.topology is not None and self.topology.node_count > 1

    @property
    def phase(self) -> str:
        return _C.phase()


class _Jobs:
    """The jobs of this process, one after another."""

    def __init__(self) -> None:
        self.current = Job()
        self.begun = 0


_jobs = _Jobs()


class PerJob(Generic[State]):
    """A module's state of one job, made anew for the next: `state = PerJob(State)` at the module's
    top, `state()` where it is needed."""

    def __init__(self, make: Callable[[], State]) -> None:
        self._make = make
        self._of: Job | None = None
        self._state: State | None = None

    def __call__(self) -> State:
        if self._of is not _jobs.current or self._state is None:
            self._of, self._state = _jobs.current, self._make()
        return self._state


def begin(topology: Any, settings: Any, store: Any) -> None:
    """A new default group: forget the last job of this process."""
    _jobs.current = Job(topology=topology, settings=settings, store=store)
    _C.reset_session()
    _C.set_log_level(settings.log)


def next_job() -> None:
    """Another default group begins: see own_store."""
    _jobs.begun += 1


def own_store(store: Any) -> Any:
    """The part of a store that is lofi's in this job. A store may outlive a default group, and the
    next one must not find what was written for the last; torchrun's also outlives the processes
    that it restarts."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"lofi/{attempt}/{_jobs.begun}", store)


def current() -> Job:
    return _jobs.current


def require() -> Job:
    """The job, or an error that says how to get one."""
    if not dist.is_initialized():
        raise RuntimeError(
            "lofi: there is no process group yet: call "
            'torch.distributed.init_process_group(backend="lofi") first, or start the script with '
            "`torchrun ... -m lofi script.py`"
        )
    if current().topology is None:
        raise RuntimeError(
            f"lofi: the process group was made with backend {dist.get_backend()!r}: use "
            'init_process_group(backend="lofi"), or start the script with '
            "`torchrun ... -m lofi script.py`"
        )
    return current()
