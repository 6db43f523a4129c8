# SPDX-License-Identifier: MIT
"""Train a small convolutional network on scikit-learn's digits with an Accelerate loop.

accelerate launch --num_processes 4 train.py
"""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


def digits() -> TensorDataset:
    found = load_digits()
    pictures = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    return TensorDataset(pictures, torch.tensor(found.target))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 2 * 2, 10),
    )


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
    """Accuracy over the shares of all ranks."""
    model.eval()
    right = count = 0
    for pictures, labels in loader:
        found = model(pictures).argmax(1)
        # Without the repeats that fill up the last batch.
        found, labels = accelerator.gather_for_metrics((found, labels))
        right += (found == labels).sum().item()
        count += len(labels)
    return right / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=16, help="per rank")
    parser.add_argument("--accumulate", type=int, default=1, help="batches per step")
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()

    accelerator = Accelerator(cpu=args.cpu, gradient_accumulation_steps=args.accumulate)
    set_seed(0)
    data = digits()
    generator = torch.Generator().manual_seed(0)
    train, validation = random_split(data, [len(data) - 360, 360], generator)
    model = network()
    model, optimizer, train_loader, validation_loader = accelerator.prepare(
        model,
        torch.optim.AdamW(model.parameters(), lr=args.lr),
        DataLoader(train, args.batch_size, shuffle=True, drop_last=True),
        DataLoader(validation, 60),
    )
    for epoch in range(args.epochs):
        model.train()
        for pictures, labels in train_loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(pictures), labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        accuracy = evaluate(accelerator, model, validation_loader)
        accelerator.print(f"epoch {epoch + 1}/{args.epochs}: accuracy {accuracy:.4f}")

    accelerator.save_model(model, args.out)
    accelerator.end_training()


if __name__ == "__main__":
    main()
