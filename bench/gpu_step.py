# SPDX-License-Identifier: MIT
"""On a GPU: a training step under lofi against nccl, and the average of a model.

    python bench/gpu_step.py [--steps 100] [--million 1300] [--out bench/out]

Two ranks of one node share the first GPU (each with an NCCL_HOSTID of its own, so NCCL goes through
loopback: the times of communication are not those of a real machine, the ratio is lofi's overhead).
They step one replica in DDP over nccl and one over lofi in turn; medians of whole steps, by CUDA
events. Then two nodes of two ranks: "mirrored" is the step with K = 2, where lofi multiplies.
Writes gpu_step.csv and prints one JSON line for each row.
"""

import argparse
import copy
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import lofi
import torch
import torch.distributed as dist
import two_groups
from torch import nn
from torch.nn.parallel import DistributedDataParallel

HERE = Path(__file__).resolve().parent
WARM_UP = 10


def transformer() -> tuple[nn.Module, torch.Tensor]:
    layer = nn.TransformerEncoderLayer(1024, 16, 4096, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 8, enable_nested_tensor=False), torch.randn(8, 256, 1024)


class Step:
    def __init__(self, model: nn.Module, data: torch.Tensor, group: Any):
        self.model = DistributedDataParallel(
            copy.deepcopy(model), device_ids=[0], process_group=group
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.data = data

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = self.model(self.data).float().square().mean()
        loss.backward()
        self.optimizer.step()


def seconds_of(step: Step) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def measure_steps(steps: int) -> dict[str, Any]:
    """In both kinds of group at once where there is one node; else lofi's alone, mirrored."""
    torch.manual_seed(0)
    model, data = transformer()
    model, data = model.cuda(), data.cuda()
    is_one_node = dist.get_world_size() == 2
    groups = {"lofi": dist.group.WORLD}
    if is_one_node:
        groups["nccl"] = dist.new_group(backend="nccl")
    replicas = {kind: Step(model, data, group) for kind, group in groups.items()}
    times: dict[str, list[float]] = {kind: [] for kind in replicas}
    for number in range(steps + WARM_UP):
        for turn in range(len(replicas)):
            kind = list(replicas)[(number + turn) % len(replicas)]
            took = seconds_of(replicas[kind])
            if number >= WARM_UP:
                times[kind].append(took)
    took = {kind: statistics.median(values) for kind, values in times.items()}
    row = {
        "what": "step" if is_one_node else "mirrored step",
        "parameters": sum(p.numel() for p in model.parameters()),
        "lofi_ms": round(took["lofi"] * 1e3, 3),
        "nccl_ms": round(took["nccl"] * 1e3, 3) if is_one_node else "",
        "lofi_over_nccl": round(took["lofi"] / took["nccl"], 4) if is_one_node else "",
        "scratch_mib": "",
    }
    return row


def measure_average(million: int, scratch: int) -> dict[str, Any]:
    torch.manual_seed(lofi.stats()["node"])
    size = (million * 1_000_000 // 16, 16)
    tensors = [torch.randn(size, device="cuda").bfloat16()]
    lofi.finalize_average(
        [torch.full((1,), float(lofi.stats()["node"]), device="cuda")]
    )  # connects
    torch.cuda.synchronize()
    dist.barrier()
    begin = time.perf_counter()
    lofi.finalize_average(tensors, scratch_bytes=scratch)
    took = time.perf_counter() - begin
    return {
        "what": "average", "parameters": tensors[0].numel(), "lofi_ms": round(took * 1e3, 1),
        "nccl_ms": "", "lofi_over_nccl": "", "scratch_mib": scratch >> 20,
    }  # fmt: skip


def rank_main(
    rank: int, function: Any, arguments: Any, world_size: int, port: int, results: Any
) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
        NCCL_SOCKET_IFNAME="lo", NCCL_HOSTID=f"host{rank}", LOFI_NODE_SIZE="2",
    )  # fmt: skip
    torch.cuda.set_device(0)
    dist.init_process_group("lofi")
    measured = function(*arguments)
    if rank == 0:
        results.put(measured)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description="on a GPU: lofi against nccl")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--million", type=int, default=1300, help="parameters of the average")
    parser.add_argument("--out", type=Path, default=HERE / "out")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench/gpu_step.py: skipped: no CUDA GPU here")
        return
    rows = []
    for function, ranks, *how in (
        (measure_steps, 2, arguments.steps),
        (measure_steps, 4, arguments.steps),
        (measure_average, 4, arguments.million, 256 << 20),
        (measure_average, 4, arguments.million, 64 << 20),
    ):
        rows.append(two_groups.spawn(rank_main, function, ranks, *how))
        print(json.dumps(rows[-1]), flush=True)
    two_groups.write_csv(rows, arguments.out / "gpu_step.csv")


if __name__ == "__main__":
    main()
