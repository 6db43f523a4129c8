# SPDX-License-Identifier: MIT
"""The launcher's end of a run: the average, written beside the script's last checkpoint.

Scripts save from one rank, and what they save is that rank's node alone. At the end the models that
trained are averaged, and the last file that torch.save wrote on this rank is written again with
the average in it: everything else in it is kept. A tensor of the file is the model's if its name
ends in the model's name for it and its values are the node's own last ones. A file that holds
something else (an earlier step) is left alone; the average is then written as a plain state dict.
"""

import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.serialization

from lofi import _average, _training, _world
from lofi._hooks.patch import wrap
from lofi._log import log, say
from lofi._native import _C
from lofi._targets import Item, collect

_last: str | None = None  # the file that this rank's last torch.save wrote


def watch() -> None:
    # Not torch.save itself: torch._dynamo, imported later, trips over a second function under
    # its two names.
    wrap(torch.serialization, "_open_zipfile_writer", _note)


def _note(original: Callable[..., Any], target: Any) -> Any:
    global _last
    if isinstance(target, (str, os.PathLike)):
        _last = os.path.abspath(os.fspath(target))
    return original(target)


def say_what_is_on_disk() -> None:
    """A run ended badly: what its last file holds."""
    world = _world.current()
    if _last and world.spans_nodes and _C.phase() == "train":
        say(f"nothing was averaged: {_last} holds the weights of node {world.node} alone")


def finish() -> None:
    """Average the models that trained since the last average and write the result."""
    world = _world.current()
    if not world.spans_nodes or _C.phase() != "train":
        return
    target = _training.what_trained()
    if target is None:
        log("warn", "nothing that lofi knows of was trained: there is nothing to average")
        return
    # Only a rank that has saved needs to know its own weights again.
    writes = _last is not None and world.settings.save != "off"
    items = collect(target) if writes else []
    own = {id(item.tensor): _C.digest(_average.on_host(item.tensor)) for item in items}
    average = _average.finalize_average(target)
    if world.rank == 0:
        say(_told(average))
    if writes:
        _write(items, _names_in_files(target, items), own, world.settings.save)


def _told(average: _average.Average) -> str:
    left_out = f"; left out: {average.missing}" if average.missing else ""
    return (
        f"averaged nodes {average.nodes}: {average.averaged} of {average.tensors} tensors, "
        f"{average.bytes_sent} bytes sent by this node, {average.seconds:.2f} s{left_out}"
    )


def _names_in_files(target: Any, items: list[Item]) -> list[str]:
    """What the names of the items in the script's files end with: tensors alone have no name."""
    if isinstance(target, torch.nn.Module):
        return [item.name for item in items]
    are_models = isinstance(target[0], torch.nn.Module)
    return [item.name.partition(".")[2] if are_models else "" for item in items]


def _write(items: list[Item], names: list[str], own: dict[int, bytes], how: str) -> None:
    path = _last if how == "inplace" else _beside(_last)
    content = _load(_last)
    kept = content is not None and _replace(content, items, names, own) == len(items)
    if not kept:
        content = {item.name: item.tensor.cpu() for item in items if not item.is_shard}
        path = _beside(_last)
    _save(content, path)
    what = "everything else as the script saved it"
    if not kept:
        what = f"a state dict: {_last} does not hold this node's last weights"
    say(f"the average is in {path} ({what})")


def _beside(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    return f"{stem}.lofi{suffix}"


def _load(path: str) -> Any:
    import argparse

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        log("warn", f"{path} can't be read back safely ({type(error).__name__})")
        return None


def _replace(content: Any, items: list[Item], names: list[str], own: dict[int, bytes]) -> int:
    """Put the average into the entries that hold the node's own values; how many were found."""
    found: set[int] = set()
    by_digest: dict[bytes, list[int]] = {}
    for index, item in enumerate(items):
        by_digest.setdefault(own[id(item.tensor)], []).append(index)

    def visit(value: Any, name: str) -> Any:
        if isinstance(value, torch.Tensor):
            # Tensors without a name that are equal in this node are taken in their order.
            for index in sorted(by_digest.get(_digest(value), []), key=found.__contains__):
                item = items[index]
                is_named = not names[index] or name.endswith(f".{names[index]}")
                if is_named and value.shape == item.tensor.shape:
                    found.add(index)
                    return item.tensor.detach().cpu().clone()
            return value
        if isinstance(value, dict):
            for key in value:
                value[key] = visit(value[key], f"{name}.{key}")
        elif isinstance(value, list):
            value[:] = [visit(entry, f"{name}.{index}") for index, entry in enumerate(value)]
        return value

    visit(content, "")
    return len(found)


def _digest(tensor: torch.Tensor) -> bytes | None:
    if tensor.layout != torch.strided:
        return None
    return _C.digest(tensor.detach().contiguous())


def _save(content: Any, path: str) -> None:
    """Written aside, synced, renamed: a reader sees the old file or the whole new one."""
    folder = os.path.dirname(path)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=os.path.basename(path) + ".")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        mode = os.stat(_last).st_mode & 0o777
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
