# SPDX-License-Identifier: MIT
"""The model of this example: a small vision transformer of timm, for digits of 8 x 8 pixels."""

from __future__ import annotations

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

PIXEL_MEAN, PIXEL_STD = 0.3, 0.38


def create_model() -> nn.Module:
    return VisionTransformer(
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=10,
        embed_dim=64,
        depth=4,
        num_heads=4,
        mlp_ratio=2.0,
    )


def normalize(images: Tensor) -> Tensor:
    """Pixels between 0 and 1 -> about zero mean and unit variance, as the model takes them."""
    return (images - PIXEL_MEAN) / PIXEL_STD


def load_part(path: str, part: str) -> tuple[Tensor, Tensor]:
    """One part of the file that digits.py writes: normalised images N x 1 x 8 x 8, and labels."""
    with np.load(path) as arrays:
        images = torch.from_numpy(arrays[f"{part}_images"]).unsqueeze(1)
        return normalize(images), torch.from_numpy(arrays[f"{part}_labels"])
