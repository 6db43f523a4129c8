# SPDX-License-Identifier: MIT
"""The example scripts of transformers, as published, with Trainer: on CPUs, on tiny data.

LOFI_TEST_HF       a folder with run_clm.py, run_glue.py and run_image_classification.py
LOFI_TEST_PYTHON   an interpreter that has transformers, datasets, torch and lofi
LOFI_TEST_MINILM   a folder with the model all-MiniLM-L6-v2: weights and tokenizer
"""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import data
import launch
import pytest
import torch
from launch import HERE, NODE_SIZE, RANKS

PICTURE = 32
COMMON = ["--use_cpu", "--report_to", "none", "--seed", "3", "--output_dir", "out"]
TRAIN = [
    *["--do_train", "--do_eval", "--eval_strategy", "epoch", "--logging_steps", "2"],
    *["--num_train_epochs", "2", "--per_device_train_batch_size", "4"],
]
SMALL_BATCH = ["--per_device_train_batch_size", "2"]
# The ranks' share of all validation data is divisible by it: a mean of batches is one of the data.
EVAL_BATCH = ["--per_device_eval_batch_size", "2"]


@dataclass
class Script:
    """How to call one: `data` always, `fresh` to begin with, `args` to train."""

    name: str
    data: list[str]
    fresh: list[str]
    args: list[str]
    streamed: tuple[str, ...] = ()  # in place of `data`


def _clm(folder: Path, python: Path) -> Script:
    minilm = launch.needed("LOFI_TEST_MINILM", "tokenizer.json")
    train, val = data.text(folder)
    overrides = "n_embd=32,n_layer=2,n_head=2,n_positions=64"
    files = ["--train_file", str(train), "--validation_file", str(val)]
    sizes = ["--block_size", "64", "--max_train_samples", "64", "--max_eval_samples", "32"]
    model = ["--model_type", "gpt2", "--config_overrides", overrides]
    fresh = [*model, "--tokenizer_name", str(minilm)]
    args = ["--learning_rate", "2e-3", "--save_strategy", "epoch"]
    stream = folder / "stream"
    stream.mkdir()
    _models(python, "parquet", train, val, stream)
    streamed = ("--dataset_name", str(stream), "--streaming", *sizes)
    return Script("run_clm.py", [*files, *sizes], fresh, args, streamed)


def _glue(folder: Path, _: Path) -> Script:
    minilm = launch.needed("LOFI_TEST_MINILM", "model.safetensors")
    train, val = data.sentences(folder)
    files = ["--train_file", str(train), "--validation_file", str(val), "--max_seq_length", "32"]
    # By default transformers 5 shows BERT's loss times the number of ranks, lofi or not.
    files += ["--average_tokens_across_devices", "False"]
    args = ["--learning_rate", "5e-5", "--save_strategy", "no"]
    return Script("run_glue.py", files, ["--model_name_or_path", str(minilm)], args)


def _images(folder: Path, python: Path) -> Script:
    pictures = data.pictures(folder / "pictures", PICTURE)
    model = folder / "vit"
    _models(python, "make", model, data.CLASSES, PICTURE)
    files = ["--train_dir", str(pictures / "train"), "--validation_dir", str(pictures / "val")]
    args = ["--learning_rate", "2e-3", "--save_strategy", "epoch"]
    return Script(
        "run_image_classification.py",
        [*files, "--remove_unused_columns", "False"],
        ["--model_name_or_path", str(model)],
        args,
    )


def _models(python: Path, *args: Any) -> None:
    command = [str(python), str(HERE / "hf_models.py"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


MAKE: dict[str, Callable[[Path, Path], Script]] = {"clm": _clm, "glue": _glue, "images": _images}


@pytest.fixture(scope="module", params=MAKE)
def script(request, tmp_path_factory):
    """A script and a function that runs it."""
    scripts = launch.needed("LOFI_TEST_HF", "run_clm.py")
    python = launch.interpreter()
    folder = tmp_path_factory.mktemp(request.param)
    made = MAKE[request.param](folder, python)
    env = {
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }

    def run(name: str, args: list[str], made: Script = made, **how: Any) -> launch.Run:
        try:
            return launch.launch(
                folder / name,
                python,
                scripts / made.name,
                [*COMMON, *EVAL_BATCH, *made.data, *args],
                paths=(HERE / "stand_ins",),
                env=env,
                **how,
            )
        except AssertionError as failed:
            unknown = re.search(r"cannot import name '(\w+)' from 'transformers'", str(failed))
            if unknown:
                pytest.skip(f"{made.name} is for another transformers: no {unknown[1]} in this one")
            raise

    return made, run


@pytest.fixture(scope="module")
def trained(script):
    """2 nodes of 2 ranks."""
    made, run = script
    return run("lofi", [*made.fresh, *made.args, *TRAIN], ranks=RANKS, node_size=NODE_SIZE)


def _evaluation(run: launch.Run) -> dict[str, float]:
    results = json.loads((run.folder / "out" / "eval_results.json").read_text())
    return {name: results[name] for name in ("eval_loss", "eval_accuracy")}


def test_nodes_train_apart(trained):
    launch.check_apart(trained)


def test_the_saved_model_is_the_average(trained, tmp_path):
    _models(launch.interpreter(), "read", trained.folder / "out", tmp_path / "saved.pt")
    launch.check_mean(trained, torch.load(tmp_path / "saved.pt", weights_only=True))


def test_the_last_evaluation_is_the_average_s(trained, script):
    _, run = script
    model = ["--model_name_or_path", str(trained.folder / "out")]
    alone = run("eval", [*model, "--do_eval"], ranks=1)
    assert _evaluation(alone) == pytest.approx(_evaluation(trained), abs=1e-4, rel=0)


def test_streaming(script, tmp_path):
    """Rank 0 reads every batch for all: that is all that crosses, and it is said once."""
    made, run = script
    if not made.streamed:
        pytest.skip(f"{made.name} has no --streaming")
    made = replace(made, data=list(made.streamed))
    args = [*made.fresh, *made.args, "--do_train", "--max_steps", "4", *SMALL_BATCH]
    streamed = run("streamed", args, made=made, ranks=RANKS, node_size=NODE_SIZE)
    launch.check_apart(streamed, crosses=True)
    _models(launch.interpreter(), "read", streamed.folder / "out", tmp_path / "saved.pt")
    launch.check_mean(streamed, torch.load(tmp_path / "saved.pt", weights_only=True))
    assert streamed.log.count("crosses nodes while they train apart") == 1
    assert "dispatch_batches" in streamed.log


def test_one_node_trains_as_gloo_alone(script):
    made, run = script
    args = [*made.fresh, *made.args, *TRAIN, "--max_steps", "6"]
    plain = run("plain", args, ranks=NODE_SIZE)
    ours = run("one-node", args, ranks=NODE_SIZE, node_size=NODE_SIZE)
    launch.check_same(ours, plain)
    assert _evaluation(ours) == _evaluation(plain)
