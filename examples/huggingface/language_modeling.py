# SPDX-License-Identifier: MIT
"""Train a small GPT-2 with Trainer on the bytes of Python's standard library; keep the best epoch.

torchrun --nproc-per-node 4 language_modeling.py
"""

import argparse
import math
import random
import sysconfig
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

BLOCK = 128  # bytes


def blocks(paths: list[Path]) -> list[dict]:
    """A token is a byte, so that no tokenizer is needed."""
    text = b"\n".join(path.read_bytes() for path in paths)
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    whole = tokens[: len(tokens) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return [{"input_ids": block, "labels": block} for block in whole]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=16, help="per rank")
    parser.add_argument("--small", action="store_true", help="2 epochs over 512 blocks")
    args = parser.parse_args()

    set_seed(0)
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    random.Random(0).shuffle(sources)  # whole files are held out, not pieces of the same ones
    validation, train = blocks(sources[:20]), blocks(sources[20:])
    if args.small:
        train, validation = train[:512], validation[:128]
    config = GPT2Config(
        vocab_size=256,
        n_positions=BLOCK,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(
            output_dir=args.out,
            num_train_epochs=2 if args.small else args.epochs,
            learning_rate=args.lr,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=16,
            warmup_steps=10,
            logging_steps=20,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,  # by eval_loss
            ddp_find_unused_parameters=False,
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=train,
        eval_dataset=validation,
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        loss = metrics["eval_loss"]
        print(f"final: {loss / math.log(2):.3f} bits per byte, loss {loss:.4f}")


if __name__ == "__main__":
    main()
