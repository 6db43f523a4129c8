# SPDX-License-Identifier: MIT
"""torch.distributed.checkpoint while nodes train apart.

It spreads duplicate tensors over all ranks, so that nodes that differ would write one file mixed
from several models, which loads without complaint. While training, a save is the first node's
alone and a load runs in each node by itself. At world scope, and with an average in, both are as
ever.
"""

import inspect
from typing import Any

import torch.distributed as dist

from lofi.groups import lookup, node_group
from lofi.job.log import log
from lofi.job.native import _C
from lofi.job.patch import when_imported, wrap

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


def _mirrored_group(arguments: dict[str, Any]) -> Any:
    """The lofi group that a save or load would use, if nodes train apart and it spans them."""
    if arguments.get("no_dist") or not dist.is_initialized() or _C.scope() != _C.SCOPE_NODE:
        return None
    backend = lookup.backend_of(arguments.get("process_group"))
    if backend is None or backend.source.group.node_count == 1:
        return None
    return backend.source.group


def _bound(original: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    bound = inspect.signature(original).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _tell(what: str) -> None:
    if what not in _told:
        _told.add(what)
        log("warn", f"torch.distributed.checkpoint while nodes train apart: {what}")


def _in_node(arguments: dict[str, Any]) -> dict[str, Any]:
    group = node_group.of(arguments.get("process_group"))
    return {**arguments, "process_group": group, "coordinator_rank": 0}


def _save(original: Any, *args: Any, **kwargs: Any) -> Any:
    arguments = _bound(original, args, kwargs)
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
