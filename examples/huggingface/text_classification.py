# SPDX-License-Identifier: MIT
"""Fine-tune an encoder with Trainer: from a Debian package's description to its section.

torchrun --nproc-per-node 4 text_classification.py --model sentence-transformers/all-MiniLM-L6-v2
"""

import argparse
import csv
import random
import subprocess

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

SECTIONS = ["fonts", "games", "graphics", "math", "science", "sound", "text", "web"]


def packages() -> list[tuple[str, str]]:
    """(description, section) of each package in these sections that apt knows."""
    command = ["apt-cache", "dumpavail"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = set()  # one description is often that of several packages
    for package in listing.split("\n\n"):
        lines = (line.partition(": ") for line in package.splitlines())
        fields = {name: value for name, _, value in lines}
        section = fields.get("Section", "").split("/")[-1]
        if section in SECTIONS and fields.get("Description"):
            found.add((fields["Description"], section))
    return sorted(found)


def rows(path: str) -> list[tuple[str, str]]:
    with open(path, newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def accuracy(prediction) -> dict[str, float]:
    right = np.argmax(prediction.predictions, axis=-1) == prediction.label_ids
    return {"accuracy": float(right.mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder, or name on the Hub")
    parser.add_argument("--train-file", help="csv with text,label; default: apt's packages")
    parser.add_argument("--out", default="out")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=8, help="per rank")
    parser.add_argument("--small", action="store_true", help="192 texts instead of 4,800")
    args = parser.parse_args()

    set_seed(0)
    texts = rows(args.train_file) if args.train_file else packages()
    random.Random(0).shuffle(texts)  # the same order on every rank: Trainer shares it out
    texts = texts[: 192 if args.small else 4800]
    labels = sorted({label for _, label in texts})
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data = [
        {**tokenizer(text, truncation=True, max_length=32), "label": labels.index(label)}
        for text, label in texts
    ]
    held_out = len(data) // 6
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.out,
            num_train_epochs=args.epochs,
            learning_rate=args.lr,
            per_device_train_batch_size=args.batch_size,
            eval_strategy="epoch",
            save_strategy="no",
            # With it, transformers 5 multiplies BERT's loss by the number of ranks.
            average_tokens_across_devices=False,
            ddp_find_unused_parameters=False,
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=data[held_out:],
        eval_dataset=data[:held_out],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"final: accuracy {metrics['eval_accuracy']:.4f} loss {metrics['eval_loss']:.4f}")


if __name__ == "__main__":
    main()
