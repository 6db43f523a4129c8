# SPDX-License-Identifier: MIT
"""The script's files that hold the last step's weights, written again with the average in them.

Scripts save from one rank, and what they save while training is that rank's node alone. Which files
those are is told by their content: every file with weights that was written after the last step is
read at the end, before the average. Its tensors are grouped by what stands before a model's
own names ("model.", "model_ema."); a group whose every tensor is, by name and by value, what this
rank holds of a model (as it is, on another device or cast) gets the average. Everything else in the
file is kept. A file of an earlier step, or one that holds an average already, has no such group.
"""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.serialization

from lofi.files import contents
from lofi.files.contents import load_pickled, save, tensors_of, with_tensors
from lofi.job import events, job
from lofi.job.log import log
from lofi.job.native import _C
from lofi.job.patch import when_imported, wrap
from lofi.launch import written
from lofi.models import training
from lofi.models.items import collect, digest, plain_name, unwrap


@dataclass
class Files:
    """Notes on the files that this rank's script has written."""

    unreadable: set[str] = field(default_factory=set)
    told: bool = False


_files = Files()
_opened = threading.local()  # the path of the file that torch.save writes now


def install() -> None:
    written.watch()
    events.save.subscribe(_record)
    # torch.save itself stays as it is: torch knows it by two names, and importing torch._dynamo
    # fails if they are two functions. Its legacy format opens the file in Python.
    wrap(torch.serialization, "_open_zipfile_writer", _note_path)
    wrap(torch.serialization, "_save", _note_content)
    when_imported("safetensors.torch", lambda m: wrap(m, "serialize_file", _note_safetensors))


def _note_path(original: Callable[..., Any], target: Any) -> Any:
    # The script may have opened the file itself; then the object has its name.
    path = target if isinstance(target, (str, os.PathLike)) else getattr(target, "name", None)
    _opened.path = path if isinstance(path, (str, os.PathLike)) else None
    return original(target)


def _note_content(original: Callable[..., Any], content: Any, *args: Any, **kwargs: Any) -> Any:
    path, _opened.path = getattr(_opened, "path", None), None
    # A file without floating point (states of random generators, arguments) holds no weights.
    if any(t.is_floating_point() for _, t in tensors_of(content)):
        _note(path)
    return original(content, *args, **kwargs)


def _note_safetensors(
    original: Callable[..., Any], tensors: Any, filename: Any, *args: Any, **kwargs: Any
) -> Any:
    _note(filename)
    return original(tensors, filename, *args, **kwargs)


def _note(path: Any) -> None:
    here = job.current()
    if not here.spans_nodes or here.pid != os.getpid():
        return
    if contents.is_saving():  # lofi's own files are none of the script's
        return
    _tell_once("what is saved" if path is None else os.path.abspath(os.fspath(path)))
    if path is not None:  # else into a buffer, which may be written to a file later
        events.save(os.path.abspath(os.fspath(path)))


def _record(path: str) -> None:
    written.note(path)


def _tell_once(what: str) -> None:
    here = job.current()
    if _C.phase() != "train" or _files.told:
        return
    _files.told = True
    end = "; files of the last step are written again with the average at the end"
    log(
        "warn",
        f"while nodes train apart, {what} holds the weights of node {here.node} alone"
        + ("" if here.settings.save == "off" else end),
    )


def last() -> str | None:
    """The file with weights that this rank's script wrote last."""
    return next(iter(written.newest()), None)


State = dict[str, torch.Tensor]  # of one model, by name


def why_not(path: str) -> str:
    """Why the average was not written into a file."""
    if path in _files.unreadable:
        return f"{path} can't be read back safely, as torch.load(weights_only=True)"
    return f"{path} holds other tensors than the model"


@dataclass
class Rewrite:
    """A file, and which of its tensors become which of a model's."""

    path: str
    content: Any
    metadata: dict[str, str] | None  # of safetensors
    replacements: dict[str, tuple[int, str]]  # name in the file -> model and name there

    def write(self, how: str, states: list[State]) -> str:
        """Write the average, which `states` now hold, and say where; nothing is written if the file
        holds it already."""
        held = dict(tensors_of(self.content))
        put = {
            path: states[index][name].detach().to("cpu", held[path].dtype, copy=True)
            for path, (index, name) in self.replacements.items()
        }
        if all(digest(held[path]) == digest(tensor) for path, tensor in put.items()):
            return f"the average is in {self.path} already"
        old = training.state().steps - written.steps_of(self.path)
        # A file of an earlier step stays: its optimizer's state goes with its own weights.
        target = self.path if how == "inplace" and not old else beside(self.path)
        save(with_tensors(self.content, put), target, self.metadata, like=self.path)
        before = f" {old} step{'s' * (old > 1)} before the end" if old else ""
        return f"the average is in {target} (everything else as the script saved it{before})"


def beside(path: str, mark: str = "lofi") -> str:
    stem, suffix = os.path.splitext(path)
    return f"{stem}.{mark}{suffix}"


def state_of(module: torch.nn.Module) -> State:
    """The whole tensors: the model's own, or, of a sharded one, gathered within the node (by all
    of its ranks)."""
    if not any(item.is_shard for item in collect(module)):
        return {name: tensor.detach() for name, tensor in _all_names(module)}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True)
    return {plain_name(k): v for k, v in get_model_state_dict(module, options=options).items()}


def find(states: list[State]) -> list[Rewrite]:
    """The files that hold these tensors as they are now."""
    here = job.current()
    if here.settings.save == "off":
        return []
    found = []
    for path in written.at_step(training.state().steps):
        content, metadata = _load(path)
        replacements = _matches(dict(tensors_of(content)), states)
        if replacements:
            found.append(Rewrite(path, content, metadata, replacements))
    return found


def find_form(states: list[State]) -> Rewrite | None:
    """The last file that a model fits into by names and shapes, whatever its values are: a script
    loads its own form of a file."""
    for path in written.newest():
        content, metadata = _load(path)
        replacements = _by_name(dict(tensors_of(content)), states, any_value=True)
        if replacements:
            return Rewrite(path, content, metadata, replacements)
    return None


def _all_names(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Tied tensors by each of their names, as a state dict has them."""
    for name, value in unwrap(module).state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor):
            yield plain_name(name), value


def holding(states: list[State]) -> list[str]:
    """The files of the last step that hold these tensors."""
    steps = training.state().steps
    return [p for p in written.at_step(steps) if _matches(dict(tensors_of(_load(p)[0])), states)]


def _matches(tensors: State, states: list[State]) -> dict[str, tuple[int, str]]:
    # Some libraries rename a part of the tensors in the file, so the search that finds more wins.
    by_name, by_value = _by_name(tensors, states), _by_value(tensors, states)
    return by_value if len(by_value) > len(by_name) else by_name


def _by_name(
    tensors: State, states: list[State], any_value: bool = False
) -> dict[str, tuple[int, str]]:
    """For each group of the file, the model that it holds: if several do, the first."""
    groups: dict[tuple[str, int], dict[str, str]] = {}
    for path in tensors:
        for index, model in enumerate(states):
            for prefix, name in _endings(path):
                if name in model and tensors[path].shape == model[name].shape:
                    groups.setdefault((prefix, index), {})[path] = name
                    break
    replacements: dict[str, tuple[int, str]] = {}
    for (prefix, index), names in groups.items():
        dot = f"{prefix}." if prefix else ""
        is_whole = len(set(names.values())) == len(states[index])
        others = [path for path in tensors if path.startswith(dot) and path not in names]
        # If only half of a model's names fit, the file holds a whole model under other names.
        if not is_whole and any(tensors[path].is_floating_point() for path in others):
            continue
        if any_value and not is_whole:
            continue
        if not any(path in replacements for path in names) and (
            any_value
            or all(_same(tensors[path], states[index][name]) for path, name in names.items())
        ):
            replacements.update({path: (index, name) for path, name in names.items()})
    return replacements


def _by_value(tensors: State, states: list[State]) -> dict[str, tuple[int, str]]:
    """A file with names of its own (adapters are saved without their adapter's name) that holds
    all of a model, or nothing but parts of one. Equal tensors are taken in their order."""
    in_file: dict[bytes, list[str]] = {}
    for path, tensor in tensors.items():
        in_file.setdefault(digest(tensor), []).append(path)
    for index, model in enumerate(states):
        left = {key: list(paths) for key, paths in in_file.items()}
        found: dict[str, tuple[int, str]] = {}
        for name, tensor in model.items():
            paths = left.get(digest(tensor), [])
            fits = [path for path in paths if tensors[path].shape == tensor.shape]
            if fits:
                found[fits[0]] = (index, name)
                paths.remove(fits[0])
        # A constant tensor (the ones of a frozen layer, say) tells nothing: any model has such.
        telling = any(tensors[path].min() != tensors[path].max() for path in found)
        if telling and len(found) in (len(model), len(tensors)):
            return found
    return {}


def _endings(path: str) -> Iterator[tuple[str, str]]:
    """ "model.module.fc.weight" -> what may be a model's own name, the longest first."""
    parts = path.split(".")
    for count in range(len(parts)):
        yield ".".join(parts[:count]), ".".join(parts[count:])


def _same(of_file: torch.Tensor, own: torch.Tensor) -> bool:
    if own.dtype != of_file.dtype:
        own = own.to(of_file.dtype)
    return digest(own) == digest(of_file)


def _load(path: str) -> tuple[Any, dict[str, str] | None]:
    try:
        if written.kind_of(path) == "safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        return load_pickled(path), None
    except Exception as error:
        _files.unreadable.add(path)
        told = str(error).split("\n")[0]
        log("info", f"{path} can't be read back safely, and is left alone: {told}")
        return None, None
