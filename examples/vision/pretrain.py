# SPDX-License-Identifier: MIT
"""Pre-training: the digits again, but other pictures of them, turned, zoomed, moved and noisy.

The model learns from 400 pictures that fine-tuning and testing never use, each of them distorted
anew at every step. It comes out as a broad but blunt model: it copes with rotation and noise, and
is clearly worse on clean digits than what fine-tuning makes of it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from digits import prepare
from torch import Tensor
from tqdm import tqdm
from vit import PIXEL_MEAN, PIXEL_STD, create_model, load_part, normalize

OUT = Path(__file__).resolve().parent / "out"
SETTINGS = {
    "steps": 1000,
    "batch_size": 64,
    "lr": 2e-3,
    "weight_decay": 0.05,
    "rotation_degrees": 60.0,
    "zoom": 0.3,
    "shift": 0.25,
    "noise_std": 0.3,
    "seed": 0,
}


def uniform(*shape: int) -> Tensor:
    """Random numbers between -1 and 1."""
    return torch.rand(*shape) * 2 - 1


def distort(images: Tensor) -> Tensor:
    """Each normalised image turned, zoomed and moved at random, with noise of random strength."""
    count = len(images)
    angle = uniform(count) * math.radians(SETTINGS["rotation_degrees"])
    zoom = 1 + uniform(count) * SETTINGS["zoom"]
    move = uniform(count, 2) * SETTINGS["shift"]
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = [torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    pixels = images * PIXEL_STD + PIXEL_MEAN
    pixels = F.grid_sample(pixels, grid, align_corners=False)
    pixels += torch.randn_like(pixels) * SETTINGS["noise_std"] * torch.rand(count, 1, 1, 1)
    return normalize(pixels.clamp(0, 1))


def train(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(SETTINGS["seed"])
    model = create_model()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=SETTINGS["lr"], weight_decay=SETTINGS["weight_decay"]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, SETTINGS["lr"], total_steps=SETTINGS["steps"], pct_start=0.1
    )
    for _ in tqdm(range(SETTINGS["steps"]), desc="pre-training", unit="step"):
        batch = torch.randperm(len(images))[: SETTINGS["batch_size"]]
        loss = F.cross_entropy(model(distort(images[batch])), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.state_dict()


def is_current(checkpoint: Path) -> bool:
    """Whether the file holds a model that was pre-trained with today's settings."""
    if not checkpoint.exists():
        return False
    return torch.load(checkpoint, weights_only=True).get("settings") == SETTINGS


def pretrain(data: Path, checkpoint: Path) -> None:
    """Write the pre-trained model, unless it is there already."""
    if is_current(checkpoint):
        return
    weights = train(*load_part(str(data), "pretrain"))
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights, "settings": SETTINGS}, checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pre-train the small vision transformer.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to")
    args = parser.parse_args()
    torch.set_num_threads(1)  # more only wait for each other with a model this small
    prepare(args.out / "digits.npz")
    pretrain(args.out / "digits.npz", args.out / "pretrained.pth")


if __name__ == "__main__":
    main()
