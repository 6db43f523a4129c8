# SPDX-License-Identifier: MIT
"""Replacing a function by one that wraps it, also in modules that are not imported yet."""

import functools
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from torch._C._dynamo import eval_frame


def _skip_when_compiling(function: Any, callees: bool = False) -> None:
    """torch._dynamo.skip_code, without importing torch._dynamo, which takes seconds."""
    of_callees = eval_frame._FrameAction.SKIP if callees else eval_frame._FrameAction.DEFAULT
    skip = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, of_callees)
    eval_frame.set_code_exec_strategy(function.__code__, skip)


def not_compiled(function: Any) -> Any:
    """Decorates what torch may call while torch.compile is active: it, and all that it calls, runs
    as it is. (torch.compile would take their frames for the user's and try to compile them.)"""
    _skip_when_compiling(function, callees=True)
    return function


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """owner.name becomes a function that calls around(original, *args, **kwargs).

    Its frame is skipped by torch.compile, as the frames of torch's own distributed code are, so
    that a hook is no graph break.
    """
    original = getattr(owner, name)
    static = isinstance(owner, type) and isinstance(owner.__dict__.get(name), staticmethod)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    _skip_when_compiling(wrapper)
    _skip_when_compiling(around)
    setattr(owner, name, staticmethod(wrapper) if static else wrapper)


def when_imported(name: str, apply: Callable[[Any], None]) -> None:
    """Call apply(module) now if the module is imported, else right after its import."""
    if name in sys.modules:
        apply(sys.modules[name])
        return
    _finder.waiting.setdefault(name, []).append(apply)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders find a module, and applies what waits for it once it has run."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Callable[[Any], None]]] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self.waiting:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        # A script may call find_spec() without importing: only loading the module applies.
        if spec.loader is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: Any, finder: _Finder) -> None:
        self._inner, self._finder = inner, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create_module(self, spec: Any) -> Any:
        return self._inner.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__loader__ = module.__spec__.loader = self._inner
        self._inner.exec_module(module)
        for apply in self._finder.waiting.pop(module.__name__, []):
            apply(module)


_finder = _Finder()
