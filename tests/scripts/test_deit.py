# SPDX-License-Identifier: MIT
"""DeiT's main.py (facebookresearch/deit), as published, with timm 0.4.12: on CPUs, on tiny data.

LOFI_TEST_DEIT     a checkout of it
LOFI_TEST_TIMM04   a folder with timm 0.4.12
"""

import argparse
import json
import re
import sys

import data
import launch
import pytest
import torch
from launch import NODE_SIZE, RANKS

ENV = {
    "LOFI_TEST_NO_CUDA": "1",
    "LOFI_TEST_SEED": "7",
    # Its checkpoints hold an argparse.Namespace, which torch.load accepted when it was written.
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
}
# A rate at which nodes differ after these few steps by more than the printed digits.
ARGS = [
    *["--device", "cpu", "--input-size", "32", "--batch-size", "8", "--num_workers", "0"],
    *["--no-repeated-aug", "--unscale-lr", "--lr", "1e-3", "--warmup-epochs", "0"],
    *["--model-ema-decay", "0.9", "--no-pin-mem"],
]
VARIANTS = {
    "deit": ["--model", "deit_tiny_patch16_224"],
    "deit3-dist-eval": ["--model", "deit_tiny_patch16_LS", "--dist-eval"],
}


@pytest.fixture(scope="module")
def deit(tmp_path_factory):
    """A function that runs main.py."""
    scripts = launch.needed("LOFI_TEST_DEIT", "main.py")
    timm = launch.needed("LOFI_TEST_TIMM04", "timm")
    folder = tmp_path_factory.mktemp("deit")
    pictures = data.pictures(folder / "pictures")

    def run(name, args, **how):
        args = [*ARGS, "--data-path", str(pictures), *args]
        script = scripts / "main.py"
        where = folder / name
        return launch.launch(where, sys.executable, script, args, paths=(timm,), env=ENV, **how)

    return run


@pytest.fixture(scope="module", params=VARIANTS)
def trained(deit, request):
    """2 nodes of 2 ranks, and the arguments for the model."""
    args = VARIANTS[request.param]
    run = deit(
        request.param,
        [*args, "--epochs", "2", "--output_dir", "out"],
        ranks=RANKS,
        node_size=NODE_SIZE,
    )
    return run, args


def _averages(run):
    """What lofi wrote, by path: beside checkpoint.pth, or best_checkpoint.pth if that came last."""
    paths = sorted((run.folder / "out").glob("*.lofi.pth"))
    assert paths, f"no average in {sorted(p.name for p in (run.folder / 'out').iterdir())}"
    with torch.serialization.safe_globals([argparse.Namespace]):
        return {path: torch.load(path, weights_only=True) for path in paths}


def test_nodes_train_apart(trained):
    launch.check_apart(trained[0])


def test_the_checkpoint_is_the_average(trained):
    for content in _averages(trained[0]).values():
        launch.check_mean(trained[0], content["model"])


def test_the_average_of_the_ema(trained):
    for content in _averages(trained[0]).values():
        launch.check_mean(trained[0], content["model_ema"], "ema")


def test_the_last_evaluation_is_the_average_s(trained, deit):
    run, args = trained
    path = next(iter(_averages(run)))
    alone = deit(f"{run.folder.name}-eval", [*args, "--eval", "--resume", str(path)], ranks=1)
    printed = re.search(r"\* Acc@1 (\S+) Acc@5 (\S+) loss (\S+)", alone.log).groups()
    last = json.loads((run.folder / "out" / "log.txt").read_text().splitlines()[-1])
    expected = [last["test_acc1"], last["test_acc5"], last["test_loss"]]
    assert [float(value) for value in printed] == pytest.approx(expected, abs=6e-4, rel=0)


def test_one_node_trains_as_gloo_alone(deit):
    args = [*VARIANTS["deit"], "--epochs", "1"]
    plain = deit("plain", args, ranks=NODE_SIZE)
    ours = deit("one-node", args, ranks=NODE_SIZE, node_size=NODE_SIZE)
    launch.check_same(ours, plain)
