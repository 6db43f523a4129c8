# SPDX-License-Identifier: MIT
import pytest
import torch
import torch.distributed as dist
from harness import truth
from harness.ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP


def _train():
    import lofi

    dist.init_process_group("lofi")
    rank = dist.get_rank()
    model = DDP(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).pow(2).mean().backward()
        optimizer.step()
    own = model.module.weight.detach().clone()
    average = lofi.finalize_average(model)
    return own, model.module.weight.detach(), average, lofi.stats()


@pytest.mark.quick
def test_nodes_train_apart_and_average():
    results = run_ranks(_train, 4, env={"LOFI_NODE_SIZE": "2"})
    own = [r[0] for r in results]
    assert torch.equal(own[0], own[1]) and torch.equal(own[2], own[3])
    assert not torch.equal(own[0], own[2])
    mean = truth.mean([own[0], own[2]])
    assert all(torch.equal(r[1], mean) for r in results)
    assert all(r[3]["cross_bytes"]["training"] == 0 for r in results)
