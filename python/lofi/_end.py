# SPDX-License-Identifier: MIT
"""The end of a run under the launcher: the average, written into the script's last files; and, if
nodes are missing, each node's own weights, so that nothing is lost."""

import os
from contextlib import suppress

import torch
import torch.distributed as dist

from lofi import _average, _checkpoints, _evaluation, _meeting, _tracked, _training, _world
from lofi._checkpoints import State
from lofi._log import log, say
from lofi._native import _C


def finish(fallback: bool = True, told_to_end: bool = False) -> None:
    """Average the models that trained since the last average, and write the result.

    fallback     if no file holds the last weights, the average is written as one of its own.
    told_to_end  the script had no time to save: own weights are written first, whatever comes
                 then, and the average in any case.
    """
    world = _world.current()
    if not world.spans_nodes or not dist.is_initialized():
        return
    _evaluation.end()  # own weights again; an average that was taken of them is kept
    if _C.phase() != "train":
        return
    targets = _tracked.targets()
    models = [target.module() for target in targets if not target.is_copy]
    copies = [target.module() for target in targets if target.is_copy]
    modules, tensors = models + copies, [] if models else _training.stepped_parameters()
    if not models and not tensors:
        log("warn", "nothing that lofi knows of was trained: there is nothing to average")
        return
    states = [_checkpoints.state_of(module) for module in modules]
    if tensors:  # without names: they are recognised by their values
        states = [{f"#{index}": tensor.detach() for index, tensor in enumerate(tensors)}]
    files = _checkpoints.find(states)
    insurance = _keep_own_weights(world, states, "SIGTERM") if told_to_end else None
    try:
        if world.rank % world.topology.node_size == 0:
            _meeting.post(world.store, world.node, "end")
        averages = [_average.finalize_average(target) for target in models or [tensors]]
        averages += [_average.finalize_average(copy) for copy in _common(copies)]
    except (RuntimeError, ValueError) as error:  # dist's errors are RuntimeErrors
        if not insurance:
            _keep_own_weights(world, states, str(error))
        raise
    if modules:
        states = [_checkpoints.state_of(module) for module in modules]
    written = [file.write(world.settings.save, states) for file in files]
    if world.rank == 0:
        say(_told(averages))
    _checkpoints.tell(written)
    if fallback and not written and modules:
        _write_alone(world, states, must=told_to_end and world.rank == 0)
    if insurance:
        os.unlink(insurance)


def _common(copies: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """The EMA copies that every rank has."""
    common = _tracked.count_everywhere(len(copies), dist.group.WORLD)
    if common < len(copies):
        log(
            "warn",
            "not every rank holds the copy (EMA) of the model: it is not averaged, and is that of "
            f"node {_world.current().node} alone",
        )
    return copies[:common]


def _told(averages: list[_average.Average]) -> str:
    first = averages[0]
    left_out = f"; left out: {first.missing}" if first.missing else ""
    return (
        f"averaged nodes {first.nodes}: {sum(a.averaged for a in averages)} of "
        f"{sum(a.tensors for a in averages)} tensors, {sum(a.bytes_sent for a in averages)} bytes "
        f"sent by this node, {sum(a.seconds for a in averages):.2f} s{left_out}"
    )


def _write_alone(world: _world.World, states: list[State], must: bool) -> None:
    """No file holds the last weights: the average beside the last file, as state dicts."""
    last = _checkpoints.last()
    if world.settings.save == "off":
        return
    if last is None and not must:
        if world.rank == 0:
            say("the script saved no weights (torch.save, safetensors): the average is on no disk")
        return
    if last is not None and _checkpoints.holds(last, states):
        say(f"the average is in {last} already: it was saved at an evaluation of it")
        return
    stem = os.path.splitext(last or "average")[0]
    if not os.path.isdir(os.path.dirname(os.path.abspath(stem))):  # a temporary one that is gone
        stem = os.path.basename(stem)
    path = _checkpoints.beside(os.path.abspath(stem) + ".pth")
    named = _named(states)
    _checkpoints.save(named["model"] if len(named) == 1 else named, path)
    what = "a state dict" if len(named) == 1 else f"the state dicts {', '.join(named)}"
    why = _checkpoints.why_not(last) if last else "nothing was saved"
    say(f"the average is in {path} ({what}: {why})")


def _named(states: list[State]) -> dict[str, State]:
    """Models first, then EMA copies: "model", "model_1" ..."""
    return {
        f"model_{index}" if index else "model": {name: t.cpu() for name, t in state.items()}
        for index, state in enumerate(states)
    }


def _keep_own_weights(world: _world.World, states: list[State], why: str) -> str | None:
    """There is no average, or none yet: each node's first rank writes what the node has. Where."""
    if world.rank % world.topology.node_size or not states:
        return None
    last = _checkpoints.last()
    folder = os.path.dirname(last) if last else os.getcwd()
    if not os.path.isdir(folder):  # a temporary one that is gone
        folder = os.getcwd()
    path = os.path.join(folder, f"lofi-node{world.node}.pth")
    marks = {"average": False, "node": world.node, "nodes": world.topology.node_count}
    try:
        _checkpoints.save({**_named(states), "lofi": marks}, path)
    except OSError as error:
        log("error", f"node {world.node}'s own weights could not be written to {path}: {error}")
        return None
    say(f"no average yet ({why}): node {world.node}'s own weights are in {path}")
    return path


def failed() -> None:
    """This process ends badly: say what is on disk, and let the other nodes know."""
    world = _world.current()
    if not world.spans_nodes:
        return
    if dist.is_initialized():
        with suppress(dist.DistNetworkError, dist.DistStoreError):
            _meeting.post_failure(world.store, world.node)
    last = _checkpoints.last()
    if last and _C.phase() in ("train", "evaluate"):
        say(f"nothing was averaged: {last} holds the weights of node {world.node} alone")
