# SPDX-License-Identifier: MIT
"""Train a small vision transformer with Trainer on scikit-learn's digits.

torchrun --nproc-per-node 4 image_classification.py
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from transformers import (
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)


def digits() -> list[dict]:
    """1797 pictures of 8 x 8 pixels between -1 and 1."""
    found = load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return [
        {"pixel_values": picture, "labels": int(label)}
        for picture, label in zip(pixels, found.target, strict=True)
    ]


def accuracy(prediction) -> dict[str, float]:
    right = np.argmax(prediction.predictions, axis=-1) == prediction.label_ids
    return {"accuracy": float(right.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=16, help="per rank")
    parser.add_argument("--small", action="store_true", help="6 epochs")
    args = parser.parse_args()

    set_seed(0)
    data = digits()
    train, validation = data[:1437], data[1437:]
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=10,
    )
    trainer = Trainer(
        model=ViTForImageClassification(config),
        args=TrainingArguments(
            output_dir=args.out,
            num_train_epochs=6 if args.small else args.epochs,
            learning_rate=args.lr,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=60,
            warmup_steps=20,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            ddp_find_unused_parameters=False,
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=train,
        eval_dataset=validation,
        compute_metrics=accuracy,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"final: accuracy {metrics['eval_accuracy']:.4f} loss {metrics['eval_loss']:.4f}")


if __name__ == "__main__":
    main()
