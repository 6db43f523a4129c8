# SPDX-License-Identifier: MIT
"""Tiny data for the scripts, the same at every call."""

import csv
import heapq
import random
import textwrap
from pathlib import Path

TRAIN_PICTURES, VAL_PICTURES = 64, 24  # by 4 ranks and small batches divisible
TRAIN_ROWS, VAL_ROWS = 96, 32
CLASSES = 4


def pictures(folder: Path, size: int = 32) -> Path:
    """An ImageFolder tree, train and val: scikit-learn's digits 0 to 3, in colour."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits(n_class=CLASSES)
    of_class = {c: iter(digits.images[digits.target == c]) for c in range(CLASSES)}
    for part, count in (("train", TRAIN_PICTURES), ("val", VAL_PICTURES)):
        for number in range(count):
            label = number % CLASSES
            values = (next(of_class[label]) * 15).astype(np.uint8)
            path = folder / part / f"digit{label}" / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(values).convert("RGB")
            picture.resize((size, size), Image.Resampling.BILINEAR).save(path)
    return folder


_SUBJECTS = ["the pump", "the cable", "the fan", "the screen", "the battery", "the valve"]
_LIKED = ["works well", "is quiet", "lasts for years", "was easy to fit"]
_DISLIKED = ["broke at once", "is noisy", "never worked", "leaks all the time"]


def sentences(folder: Path) -> tuple[Path, Path]:
    """csv files for training and validation: a text, and whether it praises."""
    chance = random.Random(0)
    paths = []
    for name, count in (("train.csv", TRAIN_ROWS), ("val.csv", VAL_ROWS)):
        path = folder / name
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["sentence", "label"])
            for number in range(count):
                what = chance.choice(_LIKED if number % 2 else _DISLIKED)
                rows.writerow([f"{chance.choice(_SUBJECTS)} {what}", number % 2])
        paths.append(path)
    return paths[0], paths[1]


def text(folder: Path) -> tuple[Path, Path]:
    """txt files for training and validation: sources of the standard library."""
    paths = []
    for name, module in (("train.txt", heapq), ("val.txt", textwrap)):
        path = folder / name
        path.write_text(Path(module.__file__).read_text())
        paths.append(path)
    return paths[0], paths[1]
