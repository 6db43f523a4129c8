# SPDX-License-Identifier: MIT
"""Run by the interpreter that has transformers.

python hf_models.py make FOLDER CLASSES SIZE   a vision transformer with random weights
python hf_models.py read FOLDER FILE           a saved model's state dict, by the names in memory
python hf_models.py parquet TEXT VAL FOLDER    a data set to stream: its columns are known
"""

import sys
from pathlib import Path

import torch
import transformers


def make(folder: str, classes: str, size: str) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=int(size),
        patch_size=8,
        num_labels=int(classes),
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    shape = {"height": int(size), "width": int(size)}
    transformers.ViTImageProcessor(size=shape).save_pretrained(folder)


def read(folder: str, file: str) -> None:
    # Not the file alone: transformers 5 gives some models' weights other names in it.
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder)
    torch.save(model.state_dict(), file)


def parquet(train: str, val: str, folder: str) -> None:
    import datasets

    for path, split in ((train, "train"), (val, "validation")):
        lines = Path(path).read_text().splitlines()
        datasets.Dataset.from_dict({"text": lines}).to_parquet(f"{folder}/{split}.parquet")


if __name__ == "__main__":
    {"make": make, "read": read, "parquet": parquet}[sys.argv[1]](*sys.argv[2:])
