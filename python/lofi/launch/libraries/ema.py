# SPDX-License-Identifier: MIT
"""EMA copies: timm's ModelEma, V2 and V3, torch's AveragedModel, and classes made of these.

They are found where they are constructed, by what they hold afterwards: the module that is a deep
copy of the model they were given.
"""

from typing import Any

import torch
import torch.distributed as dist

from lofi.average import swaps
from lofi.job import events, job
from lofi.job.patch import when_imported, wrap
from lofi.models import tracked
from lofi.models.items import named_tensors

_CLASSES = {
    "timm.utils.model_ema": ("ModelEma", "ModelEmaV2", "ModelEmaV3"),
    "torch.optim.swa_utils": ("AveragedModel",),
}
_UPDATES = ("update", "update_parameters", "set")


_BROADCAST_BUCKET_BYTES = 250 * 1024 * 1024  # as DDP's constructor


def install() -> None:
    events.wrapped.subscribe(_equalize)
    for module, names in _CLASSES.items():
        when_imported(module, lambda found, names=names: _install(found, names))  # type: ignore[misc]


def _install(module: Any, names: tuple[str, ...]) -> None:
    for name in names:
        owner = getattr(module, name, None)
        if owner is None:
            continue
        wrap(owner, "__init__", _init)
        for update in _UPDATES:
            if update in vars(owner):
                wrap(owner, update, _update)


def _init(original: Any, self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
    original(self, model, *args, **kwargs)
    copy = getattr(self, "ema", None)  # of ModelEma, which is no module itself
    if not isinstance(copy, torch.nn.Module):
        copy = getattr(self, "module", None)
    if isinstance(copy, torch.nn.Module) and isinstance(model, torch.nn.Module):
        tracked.add_copy(copy, model)


def _update(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    if swaps.any_in():
        events.training_goes_on()  # an EMA takes in the node's own weights, into its own
    return original(self, *args, **kwargs)


def _equalize(model: Any) -> None:
    """EMA copies that were made before DDP sent the first rank's weights around may hold others
    (scripts seed by rank): they, too, start from the first rank's."""
    if not job.current().spans_nodes:
        return
    group = model.process_group
    copies = tracked.copies_of(model)
    common = tracked.count_everywhere(len(copies), group)
    if common == 0:
        return
    tensors = [t.detach() for copy in copies[:common] for _, t in named_tensors(copy)]
    with torch.no_grad():
        dist._broadcast_coalesced(group, tensors, _BROADCAST_BUCKET_BYTES, 0)
