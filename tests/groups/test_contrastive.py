# SPDX-License-Identifier: MIT
"""Contrastive losses over gathered features: what the mirror makes of them, as docs/contrastive.md
derives it, against the same code in a world that is the node alone. In float64, so that a factor
shows to the last digits."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_fn
import torch.nn.functional as nn_fn
from harness.rank_jobs import job, train, wrapped
from harness.ranks import run_ranks
from torch.nn.parallel import DistributedDataParallel as DDP

BATCH, WIDTH = 3, 5


class Towers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (torch.nn.Linear(4, WIDTH).double() for _ in range(2))

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pairs = ((self.image, images), (self.text, texts))
        return tuple(nn_fn.normalize(tower(data), dim=-1) for tower, data in pairs)


def gathered(features: torch.Tensor, has_grad: bool, own_has_grad: bool) -> torch.Tensor:
    """All ranks' features. Without a gradient of the gather, as many scripts do, the own slot may
    be replaced by the features themselves."""
    if has_grad:
        return torch.cat(dist_fn.all_gather(features))
    slots = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(slots, features.detach())
    if own_has_grad:
        slots[dist.get_rank()] = features
    return torch.cat(slots)


def clip(images: torch.Tensor, texts: torch.Tensor, local: bool, has_grad: bool) -> torch.Tensor:
    """The symmetric cross entropy of CLIP, of all pairs or of this rank's, as open_clip has it."""
    all_images, all_texts = (gathered(x, has_grad, not local) for x in (images, texts))
    if local:
        logits = 10 * images @ all_texts.T, 10 * texts @ all_images.T
        labels = torch.arange(BATCH) + BATCH * dist.get_rank()
    else:
        whole = 10 * all_images @ all_texts.T
        logits, labels = (whole, whole.T), torch.arange(len(whole))
    return sum(nn_fn.cross_entropy(part, labels) for part in logits) / 2


def nt_xent(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """SimCLR's: two views of each sample, all others of both views are negatives."""
    views = [gathered(view, True, True) for view in (images, texts)]
    z = torch.cat(views)
    near = 2 * z @ z.T
    near.fill_diagonal_(-torch.inf)
    half = len(z) // 2
    return nn_fn.cross_entropy(near, torch.cat([torch.arange(half, 2 * half), torch.arange(half)]))


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "clip": lambda *x: clip(*x, local=False, has_grad=False),
    "clip, local loss": lambda *x: clip(*x, local=True, has_grad=False),
    "clip, gather with grad": lambda *x: clip(*x, local=False, has_grad=True),
    "clip, local loss, gather with grad": lambda *x: clip(*x, local=True, has_grad=True),
    "nt_xent": nt_xent,
}


def backward(number: int, loss_of: Callable[..., torch.Tensor]) -> Any:
    """The loss and gradients of a step of DDP, with data that depends on the rank's number."""
    model = DDP(Towers())
    generator = torch.Generator().manual_seed(number)
    data = (torch.randn(BATCH, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    loss = loss_of(*model(*data))
    loss.backward()
    return loss.item(), [parameter.grad for parameter in model.module.parameters()]


def with_lofi() -> Any:
    with job():
        train(wrapped(), 1)
        rank = int(os.environ["RANK"])  # get_rank() is the place where this file is listed
        return {name: backward(rank, loss) for name, loss in LOSSES.items()}


def alone(first: int) -> Any:
    with job("gloo"):
        return {name: backward(first + dist.get_rank(), loss) for name, loss in LOSSES.items()}


def distance(grads: Any, others: Any, factor: float = 1.0) -> float:
    """The norm of the difference, relative to the others'."""
    off = sum((a * factor - b).square().sum() for a, b in zip(grads, others, strict=True))
    return float((off / sum(b.square().sum() for b in others)).sqrt())


def results(nodes: int, **env: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    both = run_ranks(with_lofi, 2 * nodes, env={"LOFI_NODE_SIZE": "2", "LOFI_LOG": "error", **env})
    lone = [run for node in range(nodes) for run in run_ranks(alone, 2, 2 * node)]
    return list(zip(both, lone, strict=True))


@pytest.mark.parametrize("nodes", [2, 3])
def test_what_the_mirror_makes_of_them(nodes):
    shift = torch.log(torch.tensor(float(nodes), dtype=torch.float64)).item()
    for mirrored, lone in results(nodes):
        for name in LOSSES:
            (loss, grads), (loss_alone, grads_alone) = mirrored[name], lone[name]
            if name == "nt_xent":  # copies of a sample are its hardest negatives
                assert distance(grads, grads_alone) > 0.05
                continue
            assert loss == pytest.approx(loss_alone + shift, abs=1e-12)
            factor = nodes if name == "clip" else 1  # only one of K slots has a gradient
            assert distance(grads, grads_alone, factor) < 1e-12, name


@pytest.mark.parametrize("nodes", [2, 3])
def test_code_that_sees_its_node_gives_the_nodes_own(nodes):
    for listed, lone in results(nodes, LOFI_NODE_CALLS="test_contrastive.py"):
        for name in LOSSES:
            assert listed[name][0] == lone[name][0], name
            assert distance(listed[name][1], lone[name][1]) < 1e-14, name
