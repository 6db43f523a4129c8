# SPDX-License-Identifier: MIT
"""Names that differ between files of torch.save: prefixes of wrappers, and weights that are tied.
c_api/merge/prefix.c and tied.c do the same for safetensors."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from lofi.job.log import log

_PARTS_MOST = 8
_WRAPPERS = {
    "module.": " (as in DistributedDataParallel)",
    "_orig_mod.": " (as from torch.compile)",
    "_fsdp_wrapped_module.": " (as in FullyShardedDataParallel)",
}

Tensors = Mapping[str, torch.Tensor]


def strip(contents: Iterable[Any], prefixes: list[str]) -> None:
    """Takes the prefixes off the keys of each dict of which all begin with them, each once."""
    used: set[str] = set()
    for content in contents:
        for state in _dicts(content, set()):
            used |= _strip_from(state, prefixes)
    for prefix in prefixes:
        if prefix not in used:
            raise ValueError(
                f"lofi: strip_prefix is {prefix!r}: there is no input with tensors whose names all "
                "begin with that"
            )


def _dicts(value: Any, seen: set[int]) -> Iterator[dict]:
    if not isinstance(value, (dict, list, tuple)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict) and any(isinstance(v, torch.Tensor) for v in value.values()):
        yield value
    for entry in list(value.values() if isinstance(value, dict) else value):
        yield from _dicts(entry, seen)


def _strip_from(state: dict, prefixes: list[str]) -> set[str]:
    left, used = list(prefixes), set()
    for _ in prefixes:
        for prefix in left:
            if all(isinstance(k, str) and k.startswith(prefix) and k != prefix for k in state):
                _rename(state, prefix)
                left.remove(prefix)
                used.add(prefix)
                break
    return used


def _rename(state: dict, prefix: str) -> None:
    """In place, since the dict may be of a class of its own; and the versions of its modules."""
    for key in list(state):
        state[key[len(prefix) :]] = state.pop(key)
    versions = getattr(state, "_metadata", None)
    if isinstance(versions, dict):
        for key in list(versions):
            of = versions.pop(key)
            if key == prefix[:-1]:
                versions[""] = of
            elif key.startswith(prefix):
                versions[key[len(prefix) :]] = of


def hint(a: Any, a_label: str, b: Any, b_label: str) -> str:
    """Explains that two contents have other names: to be put behind the sentence that says so, or
    nothing."""
    others = dict(_states(b))
    for path, keys in _states(a):
        theirs = others.get(path, set())
        if keys and theirs and keys != theirs:
            found = _find_prefixes(keys, theirs)
            return _describe(a_label, found[0]) + _describe(b_label, found[1])
    return ""


def _states(value: Any, path: str = "") -> Iterator[tuple[str, set[str]]]:
    """The names in each dict of tensors, by its path."""
    if isinstance(value, dict):
        if names := {k for k, v in value.items() if isinstance(v, torch.Tensor)}:
            yield path, {str(name) for name in names}
        for key, entry in value.items():
            yield from _states(entry, f"{path}.{key}")


def _find_prefixes(a: set[str], b: set[str]) -> tuple[str, str]:
    """The shortest without which half of the names of the smaller one are in both."""
    pairs = [(x, y) for x in _prefixes(a) for y in _prefixes(b)]
    for x, y in sorted(pairs, key=lambda pair: pair[0].count(".") + pair[1].count(".")):
        both = {name[len(x) :] for name in a} & {name[len(y) :] for name in b}
        if 2 * len(both) >= min(len(a), len(b)):
            return x, y
    return "", ""


def _prefixes(names: set[str]) -> list[str]:
    """The beginnings that all names have, up to a point each: from nothing on."""
    first, last = min(names), max(names)  # what these two have in common, all have
    parts = first.split(".")[:-1][:_PARTS_MOST]
    starts = (".".join(parts[:n]) + "." for n in range(1, len(parts) + 1))
    return ["", *(start for start in starts if last.startswith(start) and first != start)]


def _describe(label: str, prefix: str) -> str:
    if not prefix:
        return ""
    wrapper = _WRAPPERS.get(prefix, "")
    return (
        f"; all names in {label} begin with {prefix!r}{wrapper}: strip_prefix={prefix!r} takes "
        "that off"
    )


def match(
    contents: list[Any],
    found: list[dict[str, torch.Tensor]],
    selected: list[set[str]],
    labels: list[str],
) -> None:
    """A tensor that one has and another lacks is tied to one that both have, or refused. The tied
    one stands in `found` under the name that was missing, if the first has that."""
    for at in range(1, len(found)):
        for name in found[0]:
            if name in selected[0] and name not in found[at]:
                twin = find_tied(name, found[0], found[at])
                _tell_tied(name, twin, contents, labels, 0, at)
                found[at][name] = found[at][str(twin)]
        for name in found[at]:
            if name in selected[at] and name not in found[0]:
                _tell_tied(name, find_tied(name, found[at], found[0]), contents, labels, at, 0)


def _tell_tied(
    name: str, twin: str | None, contents: list[Any], labels: list[str], owner: int, other: int
) -> None:
    missing = f"{labels[other]} has no tensor {name}, {labels[owner]} has"
    if twin is None:
        why = hint(contents[owner], labels[owner], contents[other], labels[other])
        raise ValueError(f"lofi: {missing}{why or ', not tied to one that is in both'}")
    stands = "which stands for it there" if owner == 0 else "and not in the average, either"
    log("warn", f"{missing}: it is tied to {twin}, being equal to it, {stands}")


def find_tied(name: str, owner: Tensors, other: Tensors) -> str | None:
    """The name of the tensor that stands in `other` for one of `owner` that it lacks: of another of
    `owner` that is equal to it, bit for bit. A constant (zeros, ones) is like many, and tied to
    none."""
    tensor = owner[name]
    if not tensor.is_floating_point() or _is_constant(tensor):
        return None
    found = [
        one
        for one, twin in owner.items()
        if one != name and one in other and are_equal(tensor, twin)
    ]
    if not found or not all(are_equal(other[found[0]], other[one]) for one in found[1:]):
        return None
    return found[0]


def are_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True
    return torch.equal(_bits(a), _bits(b))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _is_constant(tensor: torch.Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    rows = _bits(tensor).view(tensor.numel(), tensor.element_size())
    return bool((rows == rows[0]).all())
