# SPDX-License-Identifier: MIT
"""What this process knows of the job: the nodes, the settings, the models that train."""

import os
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from lofi.job.config import Settings
from lofi.job.native import _C


@dataclass
class Job:
    """The state that begins with the default group and ends with the next one."""

    topology: Any = None  # _C.Topology
    settings: Settings = field(default_factory=Settings)
    store: Any = None  # of the group that found the topology
    pid: int = field(default_factory=os.getpid)  # a fork has this state, and no part in the job
    # Models that a wrapper holds and that have trained, with the digests of their first weights.
    trained_models: "weakref.WeakKeyDictionary[torch.nn.Module, dict[str, bytes]]" = field(
        default_factory=weakref.WeakKeyDictionary
    )
    # Tensors of those models, by identity, and the digests they began with: a model that is wrapped
    # again must keep them.
    trained_tensors: dict[int, tuple["weakref.ref[torch.Tensor]", bytes]] = field(
        default_factory=dict
    )
    wrapped: int = 0  # models wrapped so far
    # Optimizers whose first step began training because nothing was wrapped.
    stepped_optimizers: list[Any] = field(default_factory=list)
    averages: int = 0  # that have been asked for: numbers their keys in the store
    steps: int = 0  # forwards with gradients of wrapped models whose backward is synchronised
    updates: int = 0  # steps of optimizers
    optimizers: "weakref.WeakSet[Any]" = field(default_factory=weakref.WeakSet)  # that made them
    posted: float = 0.0  # when this rank last said in the store where its node is
    swaps: dict[Any, Any] = field(default_factory=dict)  # see lofi.average.swaps
    tracked: dict[int, Any] = field(default_factory=dict)  # see lofi.models.tracked
    evaluation: Any = None  # see lofi.launch.evaluation

    @property
    def rank(self) -> int:
        return self.topology.rank

    @property
    def node(self) -> int:
        return self.topology.node

    @property
    def spans_nodes(self) -> bool:
        return self.topology is not None and self.topology.node_count > 1

    def was_trained(self, tensor: torch.Tensor) -> bool:
        known = self.trained_tensors.get(id(tensor))
        return known is not None and known[0]() is tensor

    def remember_trained(self, tensor: torch.Tensor, digest: bytes) -> bytes:
        """The digest that the tensor's training began with: this one, unless it is known."""
        key, table = id(tensor), self.trained_tensors
        if not self.was_trained(tensor):
            table[key] = (weakref.ref(tensor, lambda _: table.pop(key, None)), digest)
        return table[key][1]


here = Job()
_begun = 0  # default groups, in this process


def begin(topology: Any, settings: Settings, store: Any) -> None:
    """A new default group: forget the last job of this process."""
    global here
    here = Job(topology=topology, settings=settings, store=store)
    _C.reset_session()
    _C.set_log_level(settings.log)


def next_world() -> None:
    """Another default group begins: see own_store."""
    global _begun
    _begun += 1


def own_store(store: Any) -> Any:
    """Where lofi's words of this default group are: a store may outlive it, and the next one must
    not find them."""
    return dist.PrefixStore(f"lofi/{_begun}", store)


def current() -> Job:
    return here


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


def nodes_spanned(group: Any) -> int:
    """How many nodes the members of a group lie on; 1 without a topology."""
    return nodes_of(dist.get_process_group_ranks(group))


def nodes_of(ranks: list[int]) -> int:
    """The same for a list of global ranks: torch knows a group's ranks only once it is made."""
    if here.topology is None:
        return 1
    return len({rank // here.topology.node_size for rank in ranks})


def local_members(group: Any) -> list[int]:
    """The ranks, within a lofi group, of its members in this node, by place."""
    node = group.node_of(group.rank)
    return [group.member(node, place) for place in range(group.local_size)]


def require() -> Job:
    """The world, or an error that says how to get one."""
    if not dist.is_initialized():
        raise RuntimeError(
            "lofi: there is no process group yet: call "
            'torch.distributed.init_process_group(backend="lofi") first, or start the script with '
            "`torchrun ... -m lofi script.py`"
        )
    if here.topology is None:
        raise RuntimeError(
            f"lofi: the process group was made with backend {dist.get_backend()!r}: use "
            'init_process_group(backend="lofi"), or start the script with '
            "`torchrun ... -m lofi script.py`"
        )
    return here
