# SPDX-License-Identifier: MIT
"""CUDA without a GPU: every inner backend is a double of ProcessGroupNCCL (tests/mock).

Tensors stay on the CPU; where lofi would make a ProcessGroupNCCL, it makes the double, which notes
the calls that reach it and has gloo move the data.
"""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]
made: dict[str, Any] = {}  # the doubles of this rank, by the name that lofi gave them
options: dict[str, Any] = {}  # and what each was made with
splits: list[str] = []  # the names of those that were made by a split


def build() -> Path:
    """Compiles the double, where the package was built; seconds if it is there already."""
    folder = ROOT / "build" / f"{sys.implementation.cache_tag}-torch-{torch.__version__}"
    command = ["cmake", "--build", str(folder), "--target", "lofi_mock"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return folder / "backend" / f"lofi_mock{sysconfig.get_config_var('EXT_SUFFIX')}"


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("lofi_mock", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Options:
    """As ProcessGroupNCCL.Options, which would not take a double in split_from."""

    def __init__(self) -> None:
        self.config = None
        self.is_high_priority_stream = False


def install(path: Path, cpu_too: bool = True) -> None:
    """`cpu_too`: tensors on the CPU go to the double, as those on CUDA would."""
    from lofi.groups import inner

    lofi_mock = load(path)

    def nccl(store: Any, rank: int, size: int, given: Any) -> Any:
        gloo = dist.ProcessGroupGloo(store, rank, size, timeout=given._timeout)
        name = given.group_name
        made[name] = lofi_mock.MockNccl(gloo, name)
        options[name] = given
        if hasattr(given, "split_from"):
            splits.append(name)
        return made[name]

    nccl.Options = Options

    class Mocked(inner.Cuda):
        """Each connection takes 1000 bytes of the device."""

        def is_possible(self) -> bool:
            return True

        def free_bytes(self, device: Any) -> int:
            events = [event for mock in made.values() for event in mock.events]
            return 1_000_000 - 1000 * sum(event.startswith("connect") for event in events)

        def process_group(self) -> Any:
            return nccl

    torch.accelerator.device_count = lambda: 1
    inner.devices["cuda"] = Mocked()
    if cpu_too:
        inner.devices["cpu"] = inner.devices["cuda"]


def take() -> list[tuple[str, Any]]:
    """The calls since the last time: the double's name, and what it got."""
    return [(name, call) for name, mock in made.items() for call in mock.take_calls()]
