# SPDX-License-Identifier: MIT
"""The 1797 hand-written digits of scikit-learn in a fixed split, and three shifted test sets.

Everything here is a fixed function of the data: no two runs see different pictures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SPLIT = {"pretrain": 400, "train": 704, "val": 96, "test": 597}
SHIFTS = ("noise", "rotation", "thinner")
NOISE_STD = 0.25
ROTATION_DEGREES = 25.0
THINNER_WIDTH = 4  # of the 32 pixels that 8 are enlarged to


def rotate(images: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Each image turned by its own angle, black where nothing was."""
    from scipy import ndimage

    turned = [
        ndimage.rotate(image, angle, reshape=False, order=1)
        for image, angle in zip(images, degrees, strict=True)
    ]
    return np.stack(turned).astype(np.float32)


def add_noise(images: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, cut off at black and white."""
    noisy = images + rng.normal(0.0, std, images.shape)
    return noisy.clip(0.0, 1.0).astype(np.float32)


def thin(images: np.ndarray, width: int) -> np.ndarray:
    """Strokes eaten away from both sides: enlarged four times, eroded, and shrunk again."""
    from scipy import ndimage

    large = ndimage.zoom(images, (1, 4, 4), order=1, grid_mode=True, mode="grid-constant")
    eroded = ndimage.grey_erosion(large, size=(1, width, width))
    count, height, wide = images.shape
    return eroded.reshape(count, height, 4, wide, 4).mean(axis=(2, 4)).astype(np.float32)


def shifted(images: np.ndarray, shift: str) -> np.ndarray:
    """The same pictures under one of the three shifts, the same way each time."""
    rng = np.random.default_rng(2022)
    if shift == "noise":
        return add_noise(images, NOISE_STD, rng)
    if shift == "rotation":
        side = rng.choice([-1.0, 1.0], size=len(images))
        return rotate(images, side * ROTATION_DEGREES)
    if shift == "thinner":
        return thin(images, THINNER_WIDTH)
    raise ValueError(f"there is no shift {shift!r}; there are {', '.join(SHIFTS)}")


def split() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name of the part -> images of 8 x 8 pixels between 0 and 1, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order] / 16.0).astype(np.float32)
    labels = data.target[order].astype(np.int64)
    parts, start = {}, 0
    for name, size in SPLIT.items():
        parts[name] = images[start : start + size], labels[start : start + size]
        start += size
    return parts


def prepare(path: Path) -> None:
    """Write all parts, with the shifted test sets, to one .npz file."""
    arrays = {}
    for name, (images, labels) in split().items():
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = images, labels
    for shift in SHIFTS:
        arrays[f"{shift}_images"] = shifted(arrays["test_images"], shift)
        arrays[f"{shift}_labels"] = arrays["test_labels"]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
