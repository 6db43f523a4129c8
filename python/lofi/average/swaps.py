# SPDX-License-Identifier: MIT
"""The nodes' average in place of a node's own weights, and back.

One row holds whatever is not in the model: the average before it goes in, the node's own weights
while it is in, the average again after it has come out. As long as the weights stay as they were,
that average can go in again without any transfer.

Values are written below autograd, without a new version of the tensor: since they come back bit
for bit, a graph that was recorded before stays right. A script's own writes do make a new version:
that is how a load is told.
"""

from typing import Any

import torch

from lofi.average.changes import Change, Result
from lofi.average.rows import flat, write
from lofi.job import events
from lofi.job.job import PerJob
from lofi.models import shards
from lofi.models.items import Item, collect, digest, on_host, unwrap


class Swap:
    def __init__(self, target: Any, items: list[Item], result: Result, weight: float, keep: str):
        self.result, self.weight, self.is_in = result, weight, False
        self.key, self.target = _key(target), target  # held, so that no other gets its identity
        self.module = unwrap(target) if isinstance(target, torch.nn.Module) else None
        self.items = items
        # The exchange has item objects of its own for the same tensors, so memory is compared.
        known = {_place(change.item.tensor) for change in result.changes}
        self.changes = list(result.changes)
        # A forward in training mode moves buffers; those that are equal everywhere come back too.
        for item in self.items:
            if not item.is_parameter and _place(item.tensor) not in known:
                self.changes.append(Change(item, flat(on_host(item.tensor)).clone()))
        if keep == "device":
            for change in self.changes:
                change.values = change.values.to(change.item.tensor.device)
        self._seen: list[tuple[int, bytes]] = []  # versions and digests of what was put in
        self._own: list[bytes] = []  # digests of all items as they were when it came out

    def put_in(self) -> None:
        self._exchange(self.changes)
        self._seen = [_state(change.item.tensor) for change in self.changes]
        self.is_in = True

    def put_back(self) -> None:
        """The node's own values; where the script has loaded others meanwhile, these stay."""
        self.is_in = False
        touched = [
            _state(change.item.tensor) != seen
            for change, seen in zip(self.changes, self._seen, strict=True)
        ]
        loaded = any(
            was_touched and change.item.is_parameter
            for change, was_touched in zip(self.changes, touched, strict=True)
        )
        back = [
            change
            for change, was_touched in zip(self.changes, touched, strict=True)
            if not (was_touched and (change.item.is_parameter or loaded))
        ]
        moved = self._find_moved()
        self._exchange(back)
        for old, new in moved:
            with torch.inference_mode(False), torch.no_grad():
                new.data.copy_(old)
        if moved:
            _forget(self)
        if loaded or self.module is None:  # only a module is recognised when it comes again
            _forget(self)
        self._own = [digest(item.tensor) for item in self.items]

    def _find_moved(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of tensors where the script has moved the model meanwhile (to another device or
        dtype): the tensors that hold its own weights afterwards, and those that must."""
        if self.module is None:
            return []
        now = {item.name: item.tensor for item in collect(self.module)}
        moved = []
        for change in self.changes:
            old, new = change.item.tensor, now.get(change.item.name)
            if new is None or new.shape != old.shape or _place(new) == _place(old):
                continue
            if torch.equal(new, old.to(new.device, new.dtype)):  # else it was loaded
                moved.append((old, new))
        return moved

    def is_ready(self) -> bool:
        """The weights are those that this is the average of."""
        return not self.is_in and self._own == [digest(item.tensor) for item in self.items]

    def _exchange(self, changes: list[Change]) -> None:
        """Exchange the values in the tensors with those kept aside, one tensor at a time."""
        if self.module is not None:
            shards.reshard(self.module)
        with torch.inference_mode(False), torch.no_grad():
            done = 0
            try:
                for change in changes:
                    _change_places(change)
                    done += 1
            except BaseException:  # out of memory, say: never a mixture of two models
                for change in changes[:done]:
                    _change_places(change)
                raise
        torch.clear_autocast_cache()  # it may hold the weights in a lower precision


def _change_places(change: Change) -> None:
    held = flat(change.item.tensor.contiguous()).clone()
    write(change.item.tensor.data, change.values)
    change.values.copy_(held)


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _state(tensor: torch.Tensor) -> tuple[int, bytes]:
    return (0 if tensor.is_inference() else tensor._version), digest(tensor)


def _key(target: Any) -> Any:
    """A module, wrapped or not, is the same target."""
    return id(unwrap(target)) if isinstance(target, torch.nn.Module) else id(target)


_swaps: PerJob[dict[Any, Swap]] = PerJob(dict)  # by target


def remember(swap: Swap) -> None:
    _swaps()[swap.key] = swap


def find_in(target: Any) -> Swap | None:
    """The swap of this target, if its average is in."""
    swap = _swaps().get(_key(target))
    return swap if swap is not None and swap.is_in else None


def find_ready(target: Any) -> Swap | None:
    """The swap of this target, if its average can go in again."""
    swap = _swaps().get(_key(target))
    return swap if swap is not None and swap.is_ready() else None


def any_in() -> bool:
    return any(swap.is_in for swap in _swaps().values())


def forget(target: Any) -> None:
    _swaps().pop(_key(target), None)


def _forget(swap: Swap) -> None:
    _swaps().pop(swap.key, None)


def _training_goes_on() -> None:
    """Averages of the weights as they were are of no use any more: free their memory."""
    swaps = _swaps()
    for key in [key for key, swap in swaps.items() if not swap.is_in]:
        del swaps[key]


events.training_goes_on.subscribe(_training_goes_on)
