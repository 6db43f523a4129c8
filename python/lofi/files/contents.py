# SPDX-License-Identifier: MIT
"""Checkpoints hold tensors in nested dicts, lists and tuples, and their files are written whole."""

import os
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.serialization

from lofi.files.harmless import Reading

_saving = threading.local()


def is_saving() -> bool:
    """Whether this thread is within `save`: the watch over the script's own files looks away."""
    return getattr(_saving, "is_on", False)


def load_pickled(path: str) -> Any:
    """A file of torch.save, mapped where it can be, and without running code that it holds."""
    reading = Reading()
    with torch.serialization.safe_globals(reading.allowed()):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    return reading.finished(content)


def refused_classes(path: str) -> list[str]:
    """All that a file names and `load_pickled` does not read, where torch can tell."""
    with torch.serialization.safe_globals(Reading().allowed()):
        try:
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except Exception:  # no zip, a damaged one, a protocol that torch does not look into
            return []


def _is_zip(path: str) -> bool:
    """Before torch 1.6 a file was none, and can't be mapped."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def tensors_of(
    value: Any, name: str = "", *, others: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every dense tensor in nested dicts, lists and tuples, by its path: "model.fc.bias".

    `others`: sparse tensors and those without data, too.
    """
    if isinstance(value, torch.Tensor):
        if others or (value.layout == torch.strided and not value.is_meta):
            yield name, value
    elif isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in pairs:
            yield from tensors_of(entry, f"{name}.{key}" if name else str(key), others=others)


def with_tensors(value: Any, put: dict[str, torch.Tensor], name: str = "") -> Any:
    """`value` with the tensors of these names replaced; dicts and lists are changed in place."""
    if isinstance(value, torch.nn.Parameter) and name in put:
        return torch.nn.Parameter(put[name], value.requires_grad)
    if isinstance(value, torch.Tensor):
        return put.get(name, value)
    dot = f"{name}." if name else ""
    if isinstance(value, dict):  # in place: it may be of a class of its own, with attributes
        for key in value:
            value[key] = with_tensors(value[key], put, f"{dot}{key}")
    elif isinstance(value, list):
        value[:] = [with_tensors(entry, put, f"{dot}{i}") for i, entry in enumerate(value)]
    elif type(value) is tuple or hasattr(value, "_fields"):
        entries = [with_tensors(entry, put, f"{dot}{i}") for i, entry in enumerate(value)]
        value = type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save(
    content: Any, path: str, metadata: dict[str, str] | None = None, like: str | None = None
) -> None:
    """It is written aside, synced and renamed: readers see the old file or the whole new one."""
    folder = os.path.dirname(path)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=os.path.basename(path) + ".")
    os.close(handle)
    _saving.is_on = True
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import save_file

            save_file(content, temporary, metadata)
        else:
            torch.save(
                content, temporary, _use_new_zipfile_serialization=like is None or _is_zip(like)
            )
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, os.stat(like).st_mode & 0o777 if like else 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        _saving.is_on = False
