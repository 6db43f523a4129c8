# SPDX-License-Identifier: MIT
"""From torch's process groups to lofi's: the backend behind one, and the nodes that it spans."""

from typing import Any

import torch.distributed as dist

from lofi.job import job
from lofi.job.native import _C


def backend_of(group: Any) -> Any:
    """The lofi backend of a process group (None: the default one), or None."""
    if group is None:
        if not dist.is_initialized():
            return None
        group = dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        return None
    for device in group._device_types:
        backend = group._get_backend(device)
        if isinstance(backend, _C.BackendLofi):
            return backend
    return None


def mirrored(group: Any) -> Any:
    """The lofi group behind a process group, if its collectives are mirrored now, or None."""
    backend = backend_of(group)
    if backend is None or _C.scope() != _C.SCOPE_NODE:
        return None
    lofi_group = backend.source.group
    return lofi_group if lofi_group.node_count > 1 else None


def nodes_spanned(group: Any) -> int:
    """How many nodes the members of a group lie on; 1 without a topology."""
    return nodes_of(dist.get_process_group_ranks(group))


def nodes_of(ranks: list[int]) -> int:
    """The same for a list of global ranks: torch knows a group's ranks only once it is made."""
    topology = job.current().topology
    return 1 if topology is None else len({rank // topology.node_size for rank in ranks})


def local_members(group: Any) -> list[int]:
    """The ranks, within a lofi group, of its members in this node, by place."""
    node = group.node_of(group.rank)
    return [group.member(node, place) for place in range(group.local_size)]
