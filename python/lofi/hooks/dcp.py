# SPDX-License-Identifier: MIT
"""torch.distributed.checkpoint while nodes train apart.

It spreads duplicate tensors over all ranks, so that nodes that differ would write one file mixed
from several models, which loads without complaint. While training, a save is the first node's
alone and a load runs in each node by itself. Within lofi.scope("world") a save is everyone's, and
refused if the nodes hold different tensors by the same name. With an average in, both are as ever.
"""

import inspect
from typing import Any

import torch
import torch.distributed as dist

from lofi.groups import lookup, node_group
from lofi.job.log import tell
from lofi.job.native import _C
from lofi.job.patch import when_imported, wrap
from lofi.models.items import digest

_told: set[str] = set()


def install() -> None:
    when_imported(
        "torch.distributed.checkpoint.state_dict_saver",
        lambda module: wrap(module, "_save_state_dict", _save),
    )
    when_imported(
        "torch.distributed.checkpoint.state_dict_loader",
        lambda module: wrap(module, "_load_state_dict", _load),
    )


def _spanning_group(arguments: dict[str, Any]) -> Any:
    """The lofi group that a save or load would use, if it spans nodes."""
    if arguments.get("no_dist") or not dist.is_initialized():
        return None
    backend = lookup.backend_of(arguments.get("process_group"))
    if backend is None or backend.source.group.node_count == 1:
        return None
    return backend.source.group


def _mirrored_group(arguments: dict[str, Any]) -> Any:
    """The same, if nodes train apart and collectives stay inside them."""
    return _spanning_group(arguments) if _C.scope() == _C.SCOPE_NODE else None


def _bound(original: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    bound = inspect.signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _tell(what: str) -> None:
    if what not in _told:
        _told.add(what)
        tell("warn", f"torch.distributed.checkpoint while nodes train apart: {what}")


def _in_node(arguments: dict[str, Any]) -> dict[str, Any]:
    group = node_group.of(arguments.get("process_group"))
    return {**arguments, "process_group": group, "coordinator_rank": 0}


def _digests(state_dict: Any) -> dict[str, bytes]:
    """The fingerprints of what this rank holds of each tensor, by its name in a checkpoint."""
    from torch.distributed.checkpoint._nested_dict import flatten_state_dict

    flat, _ = flatten_state_dict(state_dict)
    found = {}
    for name, value in flat.items():
        if hasattr(value, "local_shards"):  # FSDP1
            parts = [shard.tensor for shard in value.local_shards()]
        elif isinstance(value, torch.Tensor):
            parts = [value.to_local() if hasattr(value, "to_local") else value]  # type: ignore[operator]
        else:
            continue
        found[name] = b"".join(digest(part) for part in parts)
    return found


def _refuse_a_mixture(arguments: dict[str, Any], group: Any) -> None:
    """RuntimeError, on every rank, if images hold different tensors by one name. Collective."""
    words: list[dict[str, bytes]] = [{}] * group.size
    mine = _digests(arguments["state_dict"])
    dist.all_gather_object(words, mine, group=arguments.get("process_group"))
    for node in range(1, group.node_count):
        for place in range(group.local_size):
            first, other = words[group.member(0, place)], words[group.member(node, place)]
            for name in sorted(first.keys() & other.keys()):
                if first[name] != other[name]:
                    raise RuntimeError(
                        f"lofi: torch.distributed.checkpoint at world scope: {name} differs "
                        f"between nodes {group.node_number(0)} and {group.node_number(node)}, "
                        "which train apart, and the checkpoint would be a mixture of their models. "
                        "Save within lofi.averaged(model) or after lofi.finalize_average(model); "
                        "outside of "
                        f'lofi.scope("world") the save is node {group.node_number(0)}\'s alone'
                    )


def _save(original: Any, *args: Any, **kwargs: Any) -> Any:
    arguments = _bound(original, args, kwargs)
    spanning = _spanning_group(arguments)
    if spanning is not None and _C.phase() == "train" and _C.scope() == _C.SCOPE_WORLD:
        _refuse_a_mixture(arguments, spanning)
    lofi_group = _mirrored_group(arguments)
    if lofi_group is None:
        return original(*args, **kwargs)
    node = lofi_group.node_of(lofi_group.rank)
    _tell(f"save writes the weights of node {lofi_group.node_number(0)} alone")
    if node == 0:
        return original(**_in_node(arguments))
    from torch.distributed.checkpoint.metadata import Metadata

    return Metadata(state_dict_metadata={})  # as a rank that had nothing to write


def _load(original: Any, *args: Any, **kwargs: Any) -> Any:
    arguments = _bound(original, args, kwargs)
    if _mirrored_group(arguments) is None:
        return original(*args, **kwargs)
    _tell("load runs in each node by itself")
    return original(**_in_node(arguments))
