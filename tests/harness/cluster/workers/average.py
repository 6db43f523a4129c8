# SPDX-License-Identifier: MIT
"""Worker: the average of a model of given size, and the loop of all_reduce it stands for.

Arguments: million parameters, dtype, what ("average", "loop" or "both"). Prints one line of JSON.
"""

import contextlib
import hashlib
import json
import sys
import time
from datetime import timedelta

import lofi
import torch
import torch.distributed as dist
from harness.cluster.marks import mark
from torch import nn

MILLION, DTYPE, WHAT = float(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3]
SECONDS = timedelta(seconds=float(sys.argv[4]) if len(sys.argv) > 4 else 300)


def make_model() -> nn.Module:
    """Layers of a ViT-B's shapes, 7.1 million parameters each, until the size is reached."""
    shapes = [(2304, 768), (2304,), (768, 768), (768,), (3072, 768), (3072,), (768, 3072), (768,)]
    model, count = nn.Module(), 0
    while count < MILLION * 1e6:
        shape = shapes[len(list(model.parameters())) % len(shapes)]
        parameter = nn.Parameter(torch.empty(shape, dtype=DTYPE))
        count += parameter.numel()
        model.register_parameter(f"p{len(list(model.parameters()))}", parameter)
    return model


def fill(model: nn.Module) -> None:
    """The weights of this node: the same on all its ranks, different from other nodes'."""
    generator = torch.Generator().manual_seed(lofi.stats()["node"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().view(torch.uint8).numpy())
    return digest.hexdigest()


def all_reduce_loop(model: nn.Module) -> None:
    for parameter in model.parameters():
        dist.all_reduce(parameter.data)
        parameter.data.div_(dist.get_world_size())


dist.init_process_group("lofi", timeout=SECONDS)
model = make_model()
fill(model)
result: dict[str, object] = {"bytes": sum(p.nbytes for p in model.parameters())}
# The first collective makes the connections; neither contender pays for that.
lofi.finalize_average([torch.ones(1000) * dist.get_rank()])
dist.barrier()
if WHAT in ("average", "both"):
    mark("average begins")
    before = fingerprint(model) if WHAT == "average" else ""
    dist.barrier()
    begin = time.monotonic()
    try:
        average = lofi.finalize_average(model)
        result["average_seconds"] = time.monotonic() - begin
        result["bytes_sent"] = average.bytes_sent
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
    mark("average ends")
    result["unchanged"] = before == fingerprint(model)
    result["sha256"] = fingerprint(model)
if WHAT in ("loop", "both"):
    fill(model)
    dist.barrier()
    begin = time.monotonic()
    with lofi.scope("world"):
        all_reduce_loop(model)
    result["loop_seconds"] = time.monotonic() - begin
print(json.dumps(result))
if "error" not in result:
    with contextlib.suppress(RuntimeError):
        dist.barrier()
    dist.destroy_process_group()
