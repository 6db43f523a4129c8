# SPDX-License-Identifier: MIT
"""`torchrun ... -m lofi script.py`: an unmodified script trains as lo-fi.

The script sees the argv, sys.path[0] and __main__ it would see alone. Its process groups become
lofi's, whatever backend it names, and get_backend() goes on answering what it named, since
libraries branch on it. When it destroys the default group, or ends, the models that trained are
averaged and written beside its last checkpoint.
"""

import atexit
import functools
import multiprocessing.process
import os
import runpy
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from lofi import features, program
from lofi.groups import register
from lofi.job import events, job
from lofi.job.log import say
from lofi.job.patch import wrap
from lofi.models import tracked

# Backends that a script may name; lofi has no inner backend for others (mpi, ucc, fake).
_OURS = {"gloo", "nccl"}
_REGISTERED = register.NAME


@dataclass
class Process:
    """How far this process has come under the launcher."""

    taken_over: bool = False
    made_a_group: bool = False
    failed: bool = False


_process = Process()


def take_over() -> None:
    """Redirect process groups to lofi. Also called in processes that the script starts."""
    if _process.taken_over:
        return
    _process.taken_over = True
    register.register()
    wrap(c10d, "_new_process_group_helper", _new_process_group)
    wrap(c10d, "destroy_process_group", _destroy)
    dist.destroy_process_group = c10d.destroy_process_group
    wrap(multiprocessing.process.BaseProcess, "_bootstrap", _run_child)
    tracked.keep_alive()
    features.install(is_launched=True)


def _replaceable(backend: str) -> bool:
    """Every device's backend is one that lofi can stand in for: "nccl", "cpu:gloo,cuda:nccl"."""
    names = {pair.rsplit(":", 1)[-1] for pair in str(backend).lower().split(",")}
    return names <= _OURS | {"undefined", ""}


_POSITION = 3  # of `backend` in _new_process_group_helper


def _new_process_group(original: Any, *args: Any, **kwargs: Any) -> Any:
    backend = kwargs.get("backend", args[_POSITION] if len(args) > _POSITION else None)
    if backend is None or str(backend) == _REGISTERED or not _replaceable(backend):
        result = original(*args, **kwargs)
        _begin()
        return result
    if "backend" in kwargs:
        kwargs["backend"] = _REGISTERED
    else:
        args = (*args[:_POSITION], _REGISTERED, *args[_POSITION + 1 :])
    result = original(*args, **kwargs)
    _begin()
    group = result[0]
    if group in c10d._world.pg_map:
        _, store = c10d._world.pg_map[group]
        c10d._world.pg_map[group] = (backend, store)  # what get_backend() answers
    return result


def _destroy(original: Any, group: Any = None) -> Any:
    # A script may call this in a `finally` while an exception is being handled; then the model is
    # in an unknown state, and is not averaged.
    if group in (None, dist.group.WORLD):
        error = sys.exc_info()[1]
        if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            finish()
        else:
            events.failed()
    return original(group)


def _begin() -> None:
    """The first group: say what is on."""
    if _process.made_a_group or not job.current().topology:
        return
    _process.made_a_group = True
    _register_end()
    _say_what_is_on()
    events.begun()


@functools.cache
def _register_end() -> None:
    # A script's subprocess is not run by `_run` and has only this. atexit calls the function first
    # that was registered last, so the average comes before the statistics are written.
    atexit.register(_finish_at_exit)


def _finish_at_exit() -> None:
    if not _process.failed and not hasattr(
        sys, "last_type"
    ):  # set where an exception ended the process
        finish()


def finish() -> None:
    """Average what trained since the last average, and write it into the script's last files."""
    if job.current().pid == os.getpid():  # not a fork: a data loader's worker, say
        events.end(True)


def _say_that_nothing_was_done() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK") == "0":
        print(
            "lofi: the script made no process group, so that there was nothing to do: under "
            "torchrun it should call init_process_group, or be told to train on several ranks "
            "(Trainer on a machine without a GPU: --use_cpu)",
            file=sys.stderr,
        )


def _say_what_is_on() -> None:
    """Print one line at the start: the nodes, their transports, the settings."""
    here = job.current()
    if here.topology is None or here.rank != 0:
        return
    nodes, size, settings = here.topology.node_count, here.topology.node_size, here.settings
    if nodes == 1:
        say(f"1 node of {size} ranks: as without lofi (LOFI_NODE_SIZE sets the ranks of a node)")
        return
    evaluation = "the average" if settings.eval == "averaged" else "each node's own weights"
    cpu = "shared memory or gloo on CPU" if settings.shm else "gloo on CPU"
    say(
        f"{nodes} nodes x {size} ranks, {cpu}, NCCL on CUDA; nothing crosses nodes while training; "
        f"evaluation: {evaluation}; files: {settings.save}"
    )


def _run(run: Callable[[], Any]) -> None:
    """Run the script, then average: not at exit, where an error could not fail the process."""
    _process.failed, ended_by = True, None
    try:
        try:
            run()
        except SystemExit as ended:
            if ended.code not in (None, 0):
                raise
            ended_by = ended
        for thread in threading.enumerate():  # as the interpreter would, at its end
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        finish()
        atexit.unregister(_finish_at_exit)
        if not _process.made_a_group:
            _say_that_nothing_was_done()
    except BaseException:
        events.failed()
        raise
    _process.failed = False
    if ended_by is not None:
        raise ended_by


def _run_child(original: Callable[..., int], self: Any, *args: Any, **kwargs: Any) -> int:
    """Run a process of multiprocessing; then average, if it ended well."""
    code = original(self, *args, **kwargs)
    _process.failed = code != 0
    if _process.failed:
        events.failed()
    else:
        finish()
    return code


def main(argv: list[str]) -> None:
    """argv: [script, its arguments ...] or ["-m", module, its arguments ...]."""
    if not argv or argv[0] in ("-h", "--help"):
        print(
            "usage: torchrun [options] -m lofi script.py [arguments]\n"
            "       torchrun [options] -m lofi -m module [arguments]\n\n"
            "Runs an unmodified training script as lo-fi: gradients are all-reduced inside each\n"
            "node, and the nodes' weights are averaged at the end. LOFI_NODE_SIZE sets the ranks\n"
            "of a node; the other settings are in the README."
        )
        raise SystemExit(0 if argv else 2)
    os.environ[register.LAUNCHED] = "1"
    take_over()
    if argv[0] == "-m":
        if len(argv) < 2:
            raise SystemExit("lofi: -m needs the name of a module")
        sys.argv = argv[1:]
        sys.path[0] = os.getcwd()
        _run(lambda: runpy.run_module(argv[1], run_name="__main__", alter_sys=True))
        return
    if not os.path.isfile(argv[0]):
        is_program = argv[0] in program.COMMANDS
        hint = f" (the program is run as `lofi {argv[0]}`, without torchrun)" if is_program else ""
        raise SystemExit(f"lofi: there is no script {argv[0]!r}{hint}")
    sys.argv = list(argv)
    sys.path[0] = os.path.dirname(os.path.abspath(argv[0]))
    code = _compile(argv[0])
    _run(lambda: exec(code, _main_module(argv[0]).__dict__))


def _compile(path: str) -> Any:
    with open(path, "rb") as file:
        return compile(file.read(), path, "exec")


def _main_module(path: str) -> ModuleType:
    """A fresh __main__, as `python script.py` makes it; it stays, so that pickles of its classes
    load, and multiprocessing finds the script by __file__."""
    module = ModuleType("__main__")
    module.__file__ = path
    module.__builtins__ = __builtins__  # type: ignore[attr-defined]
    module.__spec__ = None
    sys.modules["__main__"] = module
    return module
