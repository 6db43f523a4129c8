# SPDX-License-Identifier: MIT
"""A training step of DistributedDataParallel in one node: lofi against gloo, overlap included.

    python bench/ddp_step.py [--steps 30] [--out bench/out]

Two ranks hold replicas of each model, one in DDP over a lofi group, one over a gloo group of the
same ranks, and step them in turn on the same data. "alone" is the same step without a reduction
(no_sync): what is above it is communication that backward did not hide. Medians of whole steps:
zero_grad, forward, backward, optimizer. Torch runs on one thread.
Models: the demo's (examples/vision), a transformer of 25 million parameters.
Writes ddp_step.csv.
"""

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import two_groups
from torch import nn
from torch.nn.parallel import DistributedDataParallel

HERE = Path(__file__).resolve().parent


def demo_model() -> tuple[nn.Module, torch.Tensor]:
    sys.path.append(str(HERE.parent / "examples" / "vision"))
    from vit import create_model

    return create_model(), torch.randn(32, 1, 8, 8)


def transformer() -> tuple[nn.Module, torch.Tensor]:
    layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 8, enable_nested_tensor=False), torch.randn(4, 16, 512)


MODELS = {"demo": demo_model, "25M transformer": transformer}


class Step:
    """One replica and what a step of it takes."""

    def __init__(self, model: nn.Module, data: torch.Tensor, group: Any, synchronised: bool):
        self.model = DistributedDataParallel(copy.deepcopy(model), process_group=group)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.data, self.synchronised = data, synchronised

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        if self.synchronised:
            self.model(self.data).square().mean().backward()
        else:
            with self.model.no_sync():
                self.model(self.data).square().mean().backward()
        self.optimizer.step()


def measure(groups: dict, name: str, steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model, data = MODELS[name]()
    meeting = groups["gloo"]
    replicas = {
        "gloo": Step(model, data, groups["gloo"], True),
        "lofi": Step(model, data, groups["lofi"], True),
        "alone": Step(model, data, groups["gloo"], False),
    }
    times: dict[str, list[float]] = {kind: [] for kind in replicas}
    for number in range(steps + 3):
        for turn in range(3):
            kind = list(replicas)[(number + turn) % 3]
            dist.barrier(group=meeting)
            begin = time.perf_counter()
            replicas[kind]()
            if number >= 3:
                times[kind].append(time.perf_counter() - begin)
    took = {kind: statistics.median(values) for kind, values in times.items()}
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "gloo_ms": round(took["gloo"] * 1e3, 2),
        "lofi_ms": round(took["lofi"] * 1e3, 2),
        "alone_ms": round(took["alone"] * 1e3, 2),
        "gloo_over_lofi": round(took["gloo"] / took["lofi"], 3),
        "exposed_gloo_ms": round((took["gloo"] - took["alone"]) * 1e3, 2),
        "exposed_lofi_ms": round((took["lofi"] - took["alone"]) * 1e3, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="a DDP step in one node: lofi against gloo")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=HERE / "out")
    arguments = parser.parse_args()
    rows = []
    for name in MODELS:
        rows.append(two_groups.run(measure, 2, name, arguments.steps))
        print(rows[-1], flush=True)
    two_groups.write_csv(rows, arguments.out / "ddp_step.csv")


if __name__ == "__main__":
    main()
