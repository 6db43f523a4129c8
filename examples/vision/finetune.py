# SPDX-License-Identifier: MIT
"""Fine-tune a pre-trained vision transformer with DistributedDataParallel.

torchrun --standalone --nproc-per-node 4 finetune.py --data out/digits.npz \
    --pretrained out/pretrained.pth --out out/run
"""

from __future__ import annotations

import argparse
import math
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from vit import create_model, load_part


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="digits.npz")
    parser.add_argument("--pretrained", required=True, help="checkpoint to start from")
    parser.add_argument("--out", required=True, help="folder for the checkpoint")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--warmup-epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16, help="per rank")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--save-every-rank", action="store_true", help="also write rank<r>.pth from each rank"
    )
    return parser.parse_args()


def make_loader(args: argparse.Namespace, part: str, train: bool) -> DataLoader:
    dataset = TensorDataset(*load_part(args.data, part))
    sampler = DistributedSampler(dataset, shuffle=train, drop_last=train, seed=args.seed)
    return DataLoader(dataset, args.batch_size, sampler=sampler, drop_last=train)


def make_schedule(
    optimizer: torch.optim.Optimizer, warmup: int, total: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then half a cosine down to zero."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.no_grad()
def evaluate(model: torch.nn.Module, loader: DataLoader) -> float:
    """Accuracy over the shares of all ranks."""
    model.eval()
    counts = torch.zeros(2)
    for images, labels in loader:
        counts[0] += (model(images).argmax(1) == labels).sum()
        counts[1] += len(labels)
    dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


def train_one_epoch(
    model: torch.nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """One pass over this rank's share; the mean loss on this rank."""
    model.train()
    total = 0.0
    for images, labels in loader:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
    return total / len(loader)


def main() -> None:
    args = parse_args()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(args.seed + rank)

    train_loader = make_loader(args, "train", train=True)
    val_loader = make_loader(args, "val", train=False)
    model = create_model()
    model.load_state_dict(torch.load(args.pretrained, weights_only=True)["model"])
    model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    per_epoch = len(train_loader)
    steps = args.epochs * per_epoch
    schedule = make_schedule(optimizer, args.warmup_epochs * per_epoch, steps)

    start = time.perf_counter()
    for epoch in range(args.epochs):
        train_loader.sampler.set_epoch(epoch)
        loss = train_one_epoch(model, train_loader, optimizer, schedule)
        accuracy = evaluate(model, val_loader)
        if rank == 0:
            print(
                f"epoch {epoch + 1}/{args.epochs}  loss {loss:.3f}  "
                f"validation accuracy {100 * accuracy:.1f} %",
                flush=True,
            )
    seconds = time.perf_counter() - start

    os.makedirs(args.out, exist_ok=True)
    weights = model.module.state_dict()
    if args.save_every_rank:
        torch.save({"model": weights}, os.path.join(args.out, f"rank{rank}.pth"))
    if rank == 0:
        checkpoint = {"model": weights, "args": vars(args), "steps": steps, "seconds": seconds}
        torch.save(checkpoint, os.path.join(args.out, "checkpoint.pth"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
