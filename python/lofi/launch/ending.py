# SPDX-License-Identifier: MIT
"""The end of a run under the launcher: the average, written into the script's last files; and, if
nodes are missing, each node's own weights, so that nothing is lost."""

import itertools
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist

from lofi.average import finalize
from lofi.job import events, job
from lofi.job.job import PerJob
from lofi.job.log import log, say, tell
from lofi.job.native import _C
from lofi.launch import saved, signals
from lofi.launch.saved import State
from lofi.models import tracked, training
from lofi.rounds import progress

_OUTPUT_OPTIONS = {
    "output_dir",
    "out_dir",
    "output",
    "out",
    "save_dir",
    "checkpoint_dir",
    "log_dir",
}
_STAYS_SECONDS = 5.0  # for ranks that do not say so


def install() -> None:
    events.end.subscribe(finish)
    events.failed.subscribe(failed)


def finish(is_over: bool) -> None:
    """Average the models that trained since the last average, and write the result.

    is_over: the script has ended; if no file holds the last weights, the average is written as one
    of its own. If it was told to end and had no time to save, own weights are written first,
    whatever comes then, and the average in any case.
    """
    here = job.current()
    told_to_end = is_over and signals.state.stopped
    if not here.spans_nodes or not dist.is_initialized():
        return
    if _C.phase() != "train":
        return
    targets = tracked.targets()
    models = [target.module() for target in targets if not target.is_copy]
    copies = [target.module() for target in targets if target.is_copy]
    modules, tensors = models + copies, [] if models else training.unwrapped_parameters()
    if not models and not tensors:
        tell("warn", "nothing that lofi knows of was trained: there is nothing to average")
        return
    states = [saved.state_of(module) for module in modules]
    if tensors:  # without names: they are recognised by their values
        states = [{f"#{index}": tensor.detach() for index, tensor in enumerate(tensors)}]
    files = saved.find(states)
    insurance = _keep_own_weights(here, states, "SIGTERM") if told_to_end else None
    try:
        if here.place == 0:
            progress.of_job().post(here.node, "end")
        averages = [finalize.finalize_average(target) for target in models or [tensors]]
        averages += [finalize.finalize_average(copy) for copy in _common(copies)]
    except (RuntimeError, ValueError) as error:  # dist's errors are RuntimeErrors
        if not insurance:
            _keep_own_weights(here, states, str(error))
        raise
    if modules:
        states = [saved.state_of(module) for module in modules]
    told = [file.write(here.settings.save, states) for file in files]
    if here.rank == 0:
        say(_told(averages))
    for sentence in told:
        say(sentence)
    if is_over and not told and modules:
        _write_alone(here, states)
    if insurance:
        os.unlink(insurance)
    _leave_last(here)


@dataclass
class _Ends:
    count: int = 0


_ends = PerJob(_Ends)


def _leave_last(here: job.Job) -> None:
    """Rank 0 often holds the store, and others may still read in it when rank 0 is done: it stays
    until they say that they are done, too."""
    _ends().count += 1
    store = dist.PrefixStore(f"end/{_ends().count}", here.store)
    begin = time.monotonic()
    with suppress(dist.DistNetworkError, dist.DistStoreError):
        store.add("done", 1)
        while here.rank == 0 and time.monotonic() - begin < _STAYS_SECONDS:
            if store.add("done", 0) >= here.topology.world_size:
                return
            time.sleep(0.005)


def _common(copies: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """The EMA copies that every rank has."""
    common = tracked.count_everywhere(len(copies), dist.group.WORLD)
    if common < len(copies):
        tell(
            "warn",
            "not every rank holds the copy (EMA) of the model: it is not averaged, and is that of "
            f"node {job.current().node} alone",
            of="node",
        )
    return copies[:common]


def _told(averages: list[finalize.Average]) -> str:
    first = averages[0]
    left_out = f"; left out: {first.missing}" if first.missing else ""
    return (
        f"averaged nodes {first.nodes}: {sum(a.averaged for a in averages)} of "
        f"{sum(a.tensors for a in averages)} tensors, {sum(a.bytes_sent for a in averages)} bytes "
        f"sent by this node, {sum(a.seconds for a in averages):.2f} s{left_out}"
    )


def _write_alone(here: job.Job, states: list[State]) -> None:
    """No file of the last step holds this node's weights: the average, in the form of the last file
    that has one, else as state dicts. On rank 0 it ends on a disk, whatever the script saved."""
    if here.settings.save == "off":
        return
    last = saved.last()
    if last is None and here.rank != 0:
        return
    already = saved.holding(states)
    if already:
        names = " and ".join(already)
        say(f"the average is in {names} already: it was saved at an evaluation of it")
        return
    form = saved.find_form(states)
    if form is not None:
        say(form.write(here.settings.save, states))
        return
    path = saved.beside(os.path.splitext(last)[0] + ".pth") if last else _path_of_its_own()
    named = _named(states)
    saved.save(named["model"] if len(named) == 1 else named, path)
    what = "a state dict" if len(named) == 1 else f"the state dicts {', '.join(named)}"
    why = saved.why_not(last) if last else "the script saved no weights that lofi saw"
    say(f"the average is in {path} ({what}: {why})")


def _path_of_its_own() -> str:
    """In the output folder that the script's arguments name, else in the working folder."""
    words = [part for word in sys.argv[1:] for part in word.split("=", 1)]
    for option, value in itertools.pairwise(words):
        name = option.lstrip("-").replace("-", "_")
        if option.startswith("-") and name in _OUTPUT_OPTIONS and os.path.isdir(value):
            return os.path.abspath(os.path.join(value, "lofi-average.pth"))
    return os.path.abspath("lofi-average.pth")


def _named(states: list[State]) -> dict[str, State]:
    """Models first, then EMA copies: "model", "model_1" ..."""
    return {
        f"model_{index}" if index else "model": {name: t.cpu() for name, t in state.items()}
        for index, state in enumerate(states)
    }


def _keep_own_weights(here: job.Job, states: list[State], why: str) -> str | None:
    """There is no average, or none yet: each node's first rank writes the node's own weights, and
    returns the path of the file."""
    if here.place or not states:
        return None
    last = saved.last()
    folder = os.path.dirname(last) if last else os.getcwd()
    if not os.path.isdir(folder):  # a temporary one that is gone
        folder = os.getcwd()
    path = os.path.join(folder, f"lofi-node{here.node}.pth")
    marks = {"average": False, "node": here.node, "nodes": here.topology.node_count}
    try:
        saved.save({**_named(states), "lofi": marks}, path)
    except OSError as error:
        log("error", f"node {here.node}'s own weights could not be written to {path}: {error}")
        return None
    say(f"no average yet ({why}): node {here.node}'s own weights are in {path}")
    return path


def failed() -> None:
    """This process ends badly: say what is on disk, and let the other nodes know."""
    here = job.current()
    if not here.spans_nodes:
        return
    if dist.is_initialized():
        with suppress(dist.DistNetworkError, dist.DistStoreError):
            progress.of_job().post_failure(here.node)
    last = saved.last()
    if last and _C.phase() in ("train", "evaluate"):
        say(f"nothing was averaged: {last} holds the weights of node {here.node} alone")
