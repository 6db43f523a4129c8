# SPDX-License-Identifier: MIT
"""The script's files that hold the last step's weights, written again with the average in them.

Scripts save from one rank, and what they save while training is that rank's node alone. Which files
those are is told by their content: every file that torch.save or safetensors wrote after the last
step is read at the end, before the average. Its tensors are grouped by what stands before a model's
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
from lofi.job.log import log, say
from lofi.job.native import _C
from lofi.job.patch import when_imported, wrap
from lofi.models import training
from lofi.models.items import collect, digest, plain_name, unwrap


@dataclass
class Files:
    """The files that this rank's script has written, with the step count at that time."""

    steps: dict[str, int] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    told: bool = False

    @property
    def last(self) -> str | None:
        return next(reversed(self.steps), None)


_files = Files()
_opened = threading.local()  # the path of the file that torch.save writes now


def install() -> None:
    events.save.subscribe(_record)
    # torch.save itself stays as it is: torch knows it by two names, and importing torch._dynamo
    # fails if they are two functions.
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
    if path is not None and any(t.is_floating_point() for _, t in tensors_of(content)):
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
    events.save(os.path.abspath(os.fspath(path)))


def _record(path: str) -> None:
    here = job.current()
    _files.steps.pop(path, None)  # the last one written comes last
    _files.steps[path] = training.state().steps
    if _C.phase() == "train" and not _files.told:
        _files.told = True
        log(
            "warn",
            f"what is saved while nodes train apart, such as {path}, holds the weights of node "
            f"{here.node} alone" + ("" if here.settings.save == "off" else
            "; files of the last step are written again with the average at the end"),
        )  # fmt: skip


def last() -> str | None:
    """The file that this rank's script wrote last."""
    return _files.last


State = dict[str, torch.Tensor]  # of one model, by name


def why_not(path: str) -> str:
    """Why the average was not written into a file."""
    if path in _files.unreadable:
        return f"{path} can't be read back safely, as torch.load(weights_only=True)"
    return f"{path} does not hold this node's last weights"


@dataclass
class Rewrite:
    """A file, and which of its tensors become which of a model's."""

    path: str
    content: Any
    metadata: dict[str, str] | None  # of safetensors
    replacements: dict[str, tuple[int, str]]  # name in the file -> model and name there

    def write(self, how: str, states: list[State]) -> str:
        """Write the average, which `states` now hold, and return the path."""
        target = self.path if how == "inplace" else beside(self.path)
        held = dict(tensors_of(self.content))
        put = {
            path: states[index][name].detach().to("cpu", held[path].dtype, copy=True)
            for path, (index, name) in self.replacements.items()
        }
        content = with_tensors(self.content, put)
        save(content, target, self.metadata, like=self.path)
        return target


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
    recent = [path for path, steps in _files.steps.items() if steps == training.state().steps]
    found = []
    for path in recent:
        if os.path.isfile(path):
            content, metadata = _load(path)
            in_file = dict(tensors_of(content))
            replacements = _matches(in_file, states)
            if replacements:
                found.append(Rewrite(path, content, metadata, replacements))
    return found


def _all_names(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Tied tensors by each of their names, as a state dict has them."""
    for name, value in unwrap(module).state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor):
            yield plain_name(name), value


def holds(path: str, states: list[State]) -> bool:
    """Whether a file holds these tensors."""
    if not os.path.isfile(path):
        return False
    return bool(_matches(dict(tensors_of(_load(path)[0])), states))


def _matches(tensors: State, states: list[State]) -> dict[str, tuple[int, str]]:
    # Some libraries rename a part of the tensors in the file, so the search that finds more wins.
    by_name, by_value = _by_name(tensors, states), _by_value(tensors, states)
    return by_value if len(by_value) > len(by_name) else by_name


def _by_name(tensors: State, states: list[State]) -> dict[str, tuple[int, str]]:
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
        if not any(path in replacements for path in names) and all(
            _same(tensors[path], states[index][name]) for path, name in names.items()
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
        if path.endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        return load_pickled(path), None
    except Exception as error:
        _files.unreadable.add(path)
        told = str(error).split("\n")[0]
        log("info", f"{path} can't be read back safely, and is left alone: {told}")
        return None, None


def tell(paths: list[str]) -> None:
    for path in paths:
        say(f"the average is in {path} (everything else as the script saved it)")
