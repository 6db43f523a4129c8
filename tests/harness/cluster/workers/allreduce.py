# SPDX-License-Identifier: MIT
"""Worker: one all_reduce over gloo between the marks "begin" and "end"; MiB as the argument."""

import sys

import torch
import torch.distributed as dist
from harness.cluster.marks import mark

dist.init_process_group("gloo")
elements = int(sys.argv[1]) << 18
data = torch.full((elements,), float(dist.get_rank() + 1))
dist.barrier()
mark("begin")
dist.all_reduce(data)
dist.barrier()
mark("end")
world = dist.get_world_size()
assert torch.equal(data, torch.full((elements,), world * (world + 1) / 2.0))
dist.destroy_process_group()
