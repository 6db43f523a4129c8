# SPDX-License-Identifier: MIT
"""Soups of a network that is trained on scikit-learn's real digits: what is written is as accurate
as it was said to be, and no worse than the best run."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import checkpoints as ck
from safetensors.numpy import load_file
from safetensors.torch import save_file

datasets = pytest.importorskip("sklearn.datasets")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(ck.LOFI).exists(), reason="the program lofi is not built"),
]

SCORE = """
import sys
import numpy as np
from safetensors.numpy import load_file
w, data = load_file(sys.argv[1]), np.load("val.npz")
hidden = np.maximum(data["x"] @ w["0.weight"].T + w["0.bias"], 0)
guess = (hidden @ w["2.weight"].T + w["2.bias"]).argmax(1)
print("accuracy", (guess == data["y"]).mean())
"""


def train(model, x, y, lr, epochs, seed):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()


def network():
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 10)
    return torch.nn.Sequential(*layers)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base that saw the digits upside down, and runs that were tuned from it."""
    folder = tmp_path_factory.mktemp("digits")
    images, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    model = network()
    train(model, x[:600].flip(1), y[:600], 0.1, 10, seed=0)
    save_file(model.state_dict(), folder / "base.safetensors")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for seed, (lr, epochs) in enumerate(((0.02, 2), (0.1, 4), (0.3, 2), (0.05, 3), (0.9, 1))):
        model.load_state_dict(base)
        train(model, x[600:1000], y[600:1000], lr, epochs, seed)
        save_file(model.state_dict(), folder / f"run{seed}.safetensors")
    np.savez(folder / "val.npz", x=x[1000:].numpy(), y=y[1000:].numpy())
    (folder / "score.py").write_text(SCORE)
    return folder, x[1000:], y[1000:]


def accuracy(runs, name):
    folder, x, y = runs
    model = network()
    state = {n: torch.from_numpy(w) for n, w in load_file(folder / name).items()}
    model.load_state_dict(state)
    return float((model(x).argmax(1) == y).double().mean())


def soup(runs, *arguments):
    command = f"{sys.executable} score.py {{}}"
    done = ck.lofi("soup", *arguments, "--score", command, "--json", cwd=runs[0])
    return json.loads(done.stdout)


def test_greedy(runs):
    names = [f"run{i}.safetensors" for i in range(5)]
    told = soup(runs, *names, "-o", "soup.safetensors")
    alone = [step["score"] for step in told["steps"][:5]]
    assert alone == pytest.approx([accuracy(runs, name) for name in names], abs=2e-3)
    assert told["score"] == pytest.approx(accuracy(runs, "soup.safetensors"), abs=2e-3)
    assert told["score"] >= max(alone) > 0.8
    weights = [load_file(runs[0] / name) for name in told["inputs"]]
    for name, found in load_file(runs[0] / "soup.safetensors").items():
        mean = sum(w[name].astype(np.float64) for w in weights) / len(weights)
        assert np.array_equal(found, mean.astype(np.float32))


def test_alphas(runs):
    told = soup(
        runs, "base.safetensors", "run1.safetensors", "-o", "mix.safetensors", "--alpha", "0:1:0.25"
    )
    scores = [step["score"] for step in told["steps"]]
    assert scores[0] == pytest.approx(accuracy(runs, "base.safetensors"), abs=2e-3)
    assert scores[-1] == pytest.approx(accuracy(runs, "run1.safetensors"), abs=2e-3)
    assert told["score"] == max(scores) > scores[0]
    assert told["score"] == pytest.approx(accuracy(runs, "mix.safetensors"), abs=2e-3)
