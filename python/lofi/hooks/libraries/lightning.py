# SPDX-License-Identifier: MIT
"""Lightning: it broadcasts a SIGTERM flag before each training step, and paths and decisions to
stop from rank 0. While nodes train apart, each node decides for itself, by its own first rank.

Left alone: Fabric's broadcast, which is a call of the script.
"""

from typing import Any

from lofi.job.patch import when_imported, wrap
from lofi.job.phases import by_wrapper

_PACKAGES = ("pytorch_lightning", "lightning.pytorch")
# module, class, method
_PLACES = (
    ("loops.training_epoch_loop", "_TrainingEpochLoop", "_broadcast_sigterm_tensor"),
    ("trainer.connectors.signal_connector", "_SignalConnector", "_sigterm_notifier_fn"),
    ("strategies.ddp", "DDPStrategy", "broadcast"),
    ("strategies.fsdp", "FSDPStrategy", "broadcast"),
)


def install() -> None:
    for package in _PACKAGES:
        for module, owner, method in _PLACES:
            _watch(f"{package}.{module}", owner, method)


def _watch(module: str, owner: str, method: str) -> None:
    def patch(loaded: Any) -> None:
        found = getattr(loaded, owner, None)
        if hasattr(found, method):  # releases differ
            wrap(found, method, _of_the_node)

    when_imported(module, patch)


def _of_the_node(original: Any, *args: Any, **kwargs: Any) -> Any:
    with by_wrapper():
        return original(*args, **kwargs)
