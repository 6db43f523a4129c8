# SPDX-License-Identifier: MIT
"""Worker: an ordinary DDP script; marks the stretch between the first backward and the end.

Arguments: backend, steps.
"""

import json
import sys

import torch
import torch.distributed as dist
from harness.cluster.marks import mark
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

dist.init_process_group(sys.argv[1])
torch.manual_seed(dist.get_rank())
model = DDP(
    nn.Sequential(nn.Linear(256, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 256)),
    find_unused_parameters=True,
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)


def step() -> None:
    optimizer.zero_grad()
    loss = model(torch.randn(8, 256)).square().mean()
    loss.backward()
    dist.all_reduce(loss.detach())
    dist.all_gather_object([None] * dist.get_world_size(), loss.item())
    dist.barrier()
    optimizer.step()


step()
mark("training begins")
for _ in range(int(sys.argv[2])):
    step()
mark("training ends")
if sys.argv[1] == "lofi":
    import lofi

    before = [p.detach().clone() for p in model.parameters()]
    average = lofi.finalize_average(model)
    changed = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    print(json.dumps({"stats": lofi.stats(), "nodes": average.nodes, "changed": changed}))
dist.destroy_process_group()
