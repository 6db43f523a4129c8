# SPDX-License-Identifier: MIT
"""The models that lofi averages of its own accord: those in a wrapper, and their EMA copies.

Tables by identity, never attributes: a deep copy or a pickle of a model must not carry them along.
"""

import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from lofi.groups import lookup
from lofi.job.job import PerJob
from lofi.models.items import unwrap
from lofi.rounds import progress
from lofi.rounds.board import job_board
from lofi.rounds.rounds import LEAST, Round


@dataclass(eq=False)
class Target:
    """One model, wrapped or bare, or one copy of it."""

    name: str  # the same on every rank: "model 0", "copy 0"
    module: Any  # weak reference to what is averaged: the outermost wrapper

    @property
    def is_copy(self) -> bool:
        return self.name.startswith("copy")


# The key is the identity of a module; with it come a weak reference to it, and its target.
_table: PerJob[dict[int, tuple[Any, Target]]] = PerJob(dict)

# Each copy that follows a model (EMA) with a weak reference to this model. Copies are noted when
# they are made, which is before the job knows of the model, and often before the model is wrapped.
_copies: "weakref.WeakKeyDictionary[torch.nn.Module, Any]" = weakref.WeakKeyDictionary()


@dataclass
class _Kept:
    """Under the launcher the function that made a model may return before the end, where the model
    is averaged; so this keeps models and copies alive."""

    is_on: bool = False
    modules: list[torch.nn.Module] = field(default_factory=list)


_kept = _Kept()


def keep_alive() -> None:
    _kept.is_on = True


def _keep(module: torch.nn.Module) -> None:
    if _kept.is_on:
        # A model that is wrapped again replaces its former wrapper.
        others = [other for other in _kept.modules if inner(other) is not inner(module)]
        _kept.modules = [*others, module]


def add_copy(copy: torch.nn.Module, source: torch.nn.Module) -> None:
    """`copy` follows `source`, which may be wrapped."""
    _copies[copy] = weakref.ref(inner(source))
    _keep(copy)
    if find(source) is not None:
        _add(copy, "copy")


def copies_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [copy for copy, source in _copies.items() if source() is inner(model)]


def add(model: torch.nn.Module) -> None:
    """A wrapped model trains."""
    _add(model, "model")
    _keep(model)
    for copy in copies_of(model):
        _add(copy, "copy")


def find(module: torch.nn.Module) -> Target | None:
    """The target that this module is, or is the wrapper of, or is wrapped in."""
    known = _table().get(id(inner(module)))
    return known[1] if known is not None and known[0]() is inner(module) else None


def is_tracked(module: torch.nn.Module) -> Target | None:
    """The same for a module that is one of the two itself: no unwrapping, for hooks."""
    known = _table().get(id(module))
    return known[1] if known is not None and known[0]() is module else None


def targets() -> list[Target]:
    """All of them that still live, models first."""
    seen = {target.name: target for _, target in _table().values()}
    alive = [target for target in seen.values() if target.module() is not None]
    return sorted(alive, key=lambda target: (target.is_copy, int(target.name.split()[1])))


_counted: PerJob[Counter[str]] = PerJob(Counter)  # counts taken, by group


def count_everywhere(count: int, group: Any) -> int:
    """How many copies every rank of the group has: some scripts make one on rank 0 alone."""
    backend = lookup.backend_of(group)
    if backend is None:
        return 0
    _counted()[group.group_name] += 1
    limit = backend.source.timeout.total_seconds()
    board = job_board().part(f"copies/{group.group_name}/{_counted()[group.group_name]}")
    what = "the count of copies (EMA) waits for the other ranks"
    meeting = Round(board, dist.get_rank(group), dist.get_world_size(group), kind=LEAST)
    closed = meeting.meet(limit, what, word=str(count), stop=progress.of_job().any_failed)
    if closed.missing:
        raise dist.DistBackendError(
            f"lofi: Timed out waiting: ranks {closed.missing} did not say within {limit:g} s (the "
            "timeout of the group) how many copies (EMA) of the model they hold: have they ended?"
        )
    return closed.value


def inner(module: torch.nn.Module) -> torch.nn.Module:
    """Without DDP, and without torch.compile."""
    while True:
        bare = getattr(unwrap(module), "_orig_mod", unwrap(module))
        if bare is module:
            return bare
        module = bare


def _add(module: torch.nn.Module, kind: str) -> None:
    table = _table()
    target = find(module)
    if target is None:
        count = sum(1 for other in targets() if other.name.startswith(kind))
        target = Target(f"{kind} {count}", None)
    target.module = weakref.ref(module)  # wrapped again, it is the same model
    for part in {id(part): part for part in (module, unwrap(module), inner(module))}.values():
        key = id(part)
        reference = weakref.ref(part, lambda _, key=key: table.pop(key, None))  # type: ignore[misc]
        table[key] = (reference, target)
