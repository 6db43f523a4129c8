# SPDX-License-Identifier: MIT
"""Values that a file of torch.save may hold beside tensors, and that are read without running code.

torch reads dicts, lists and plain values; all else it refuses, or would call what the file names
with what the file gives. Here is a closed list of classes whose construction runs nothing, and
numpy's are built by functions of this module: numpy's own trust the flags of a file's dtype, so
that one with objects in it could point anywhere.
"""

import argparse
import collections
import datetime
import decimal
import pathlib
import re
import types
import uuid
from collections.abc import Callable
from typing import Any

import torch

# A dtype of numpy may be of these: booleans, numbers, times, text and bytes of a fixed size.
_NUMPY_KINDS = re.compile(r"[?biufcSUMm][0-9]*")
_NUMPY_TYPES = (
    *("bool", "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)

_CLASSES: tuple[type, ...] = (
    argparse.Namespace,  # DeiT's files hold its arguments
    types.SimpleNamespace,
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    decimal.Decimal,
    uuid.UUID,
    torch.torch_version.TorchVersion,
    *(bool, int, float, complex, str, list, tuple, dict, set, frozenset, slice),
)
_PATHS = {
    "PosixPath": pathlib.PosixPath, "PurePosixPath": pathlib.PurePosixPath,
    "WindowsPath": pathlib.PureWindowsPath, "PureWindowsPath": pathlib.PureWindowsPath,
}  # fmt: skip


class _Dtype:
    """Stands for a dtype of numpy while it is read."""

    def __init__(self, text: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(text, str) or not (text == "O8" or _NUMPY_KINDS.fullmatch(text)):
            raise ValueError(f"a dtype of numpy that is not of numbers or text: {text!r}")
        self.text, self.order = text, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")
        if len(state) > 8 and state[8] and self.text[0] in "Mm":  # datetime64 has a unit
            unit, count = state[8][1][0], int(state[8][1][1])
            unit = unit.decode() if isinstance(unit, bytes) else unit
            if not re.fullmatch("[A-Za-z]{1,7}", unit):
                raise ValueError(f"a unit of time that is {unit!r}")
            self.text += f"[{count}{unit}]"

    @property
    def real(self) -> Any:
        import numpy as np

        return np.dtype("O" if self.text == "O8" else self.order + self.text)


class _Array:
    """Stands for an array of numpy while it is read."""

    value: Any = None

    def __setstate__(self, state: tuple) -> None:
        import numpy as np

        _, shape, dtype, is_fortran, data = state
        order: Any = "F" if is_fortran else "C"
        if isinstance(data, list):
            flat: Any = np.empty(len(data), dtype=object)
            flat[:] = data
        elif dtype.text == "O8":
            raise ValueError("an array of objects whose data are bytes")
        else:
            flat = np.frombuffer(_bytes(data), dtype=dtype.real).copy()
        self.value = flat.reshape(tuple(shape), order=order)


def _bytes(data: Any) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def _scalar(dtype: _Dtype, data: Any) -> Any:
    import numpy as np

    if dtype.text == "O8":
        raise ValueError("a number of numpy that is an object")
    return np.frombuffer(_bytes(data), dtype=dtype.real, count=1)[0]


def _array(subtype: Any, shape: Any, kind: Any) -> _Array:
    return _Array()


def _empty_bytes() -> bytes:
    """Python pickles b"" as a call of bytes; one with a number would take as much memory."""
    return b""


class _Ndarray:
    """Stands for the class numpy.ndarray, which is named only."""


class Reading:
    """The classes that are allowed while one file is read. torch fills nothing but lists and plain
    dicts: these stand in for all else that is filled, until the end."""

    def __init__(self) -> None:
        self._finish: dict[int, tuple[Any, Callable[[], Any]]] = {}

    def _default_dict(self, factory: Any = None) -> Any:
        made: collections.OrderedDict = collections.OrderedDict()
        self._finish[id(made)] = (made, lambda: collections.defaultdict(factory, made))
        return made

    def _deque(self, entries: Any = (), most: int | None = None) -> Any:
        made = list(entries)
        self._finish[id(made)] = (made, lambda: collections.deque(made, most))
        return made

    def allowed(self) -> list[Any]:
        """As torch.serialization.safe_globals takes it."""
        named: dict[str, Any] = {f"{one.__module__}.{one.__qualname__}": one for one in _CLASSES}
        for module in ("pathlib", "pathlib._local"):
            named |= {f"{module}.{name}": one for name, one in _PATHS.items()}
        named["builtins.bytes"] = _empty_bytes
        named["collections.defaultdict"] = self._default_dict
        named["collections.deque"] = self._deque
        return [(one, name) for name, one in (named | _of_numpy()).items()]

    def finished(self, value: Any) -> Any:
        """The content, with all that stood in replaced by what it stands for."""
        return _Finish(self._finish).of(value)


def _of_numpy() -> dict[str, Any]:
    try:
        import numpy as np
    except ImportError:  # then it stays refused
        return {}
    named: dict[str, Any] = {f"numpy.{name}": getattr(np, name) for name in _NUMPY_TYPES}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        named |= {f"{module}.scalar": _scalar, f"{module}._reconstruct": _array}
    here = _Dtype.__module__
    named |= {"numpy.dtype": _Dtype, "numpy.ndarray": _Ndarray, f"{here}._Array": _Array}
    return named


class _Finish:
    def __init__(self, finish: dict[int, tuple[Any, Callable[[], Any]]]) -> None:
        self.finish = finish
        self.done: dict[int, Any] = {}  # by identity, so that what was shared is shared again
        self.kept: list[Any] = []  # and no identity is used twice

    def of(self, value: Any) -> Any:
        if isinstance(value, (torch.Tensor, str, bytes, int, float, type(None))):
            return value
        if id(value) not in self.done:
            self.done[id(value)] = value  # for what holds itself
            self.kept.append(value)
            self.done[id(value)] = self._made(value)
        return self.done[id(value)]

    def _made(self, value: Any) -> Any:
        if isinstance(value, _Dtype):
            return value.real
        if isinstance(value, _Array):
            if value.value is not None and value.value.dtype == object:
                flat = value.value.reshape(-1)  # a view: it is contiguous
                flat[:] = [self.of(entry) for entry in flat]
            return value.value
        if value is _Ndarray:
            import numpy as np

            return np.ndarray
        if isinstance(value, dict):
            for key in value:
                value[key] = self.of(value[key])
        elif isinstance(value, list):
            value[:] = [self.of(entry) for entry in value]
        elif type(value) is tuple:
            entries = [self.of(entry) for entry in value]
            is_same = all(new is old for new, old in zip(entries, value, strict=True))
            return value if is_same else tuple(entries)
        elif isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
            vars(value).update({key: self.of(entry) for key, entry in vars(value).items()})
        if id(value) in self.finish:
            return self.finish[id(value)][1]()
        return value
