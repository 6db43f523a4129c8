# SPDX-License-Identifier: MIT
"""lofi.soup and `python -m lofi soup --plot`, against a greedy search in float64."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lofi
import pytest
import torch
from lofi import program
from safetensors.torch import load_file, save_file

PNG = b"\x89PNG\r\n\x1a\n"


def score_of(state):
    return -float(((state["w"].double() - 1) ** 2).sum())


def load(path):
    return torch.load(path) if path.endswith(".pt") else load_file(path)


@pytest.fixture(params=[".pt", ".safetensors"])
def runs(request, tmp_path):
    states, paths = [], []
    for seed, spread in enumerate((0.7, 0.4, 0.3, 0.9, 0.35)):
        noise = torch.randn(9, generator=torch.Generator().manual_seed(seed + 3))
        states.append({"w": 1 + spread * noise})
        paths.append(str(tmp_path / f"run{seed}{request.param}"))
        (torch.save if request.param == ".pt" else save_file)(states[-1], paths[-1])
    return states, paths, str(tmp_path / f"soup{request.param}")


def greedy(states, sign=1):
    alone = [score_of(state) for state in states]
    order = sorted(range(len(states)), key=lambda i: -sign * alone[i])
    kept, best = [order[0]], alone[order[0]]
    for i in order[1:]:
        mean = sum(states[k]["w"].double() for k in [*kept, i]) / (len(kept) + 1)
        value = score_of({"w": mean.float()})
        if sign * value >= sign * best:
            kept, best = [*kept, i], value
    return alone, order, kept, best


@pytest.mark.parametrize("lower", [False, True])
def test_greedy(runs, lower, tmp_path):
    states, paths, out = runs
    alone, order, kept, best = greedy(states, -1 if lower else 1)
    before = sorted(os.listdir(tmp_path))
    seen = []

    def score(path):
        seen.append(path)
        return score_of(load(path))

    result = lofi.soup(paths, out, score, lower=lower)
    assert result.kept == [paths[i] for i in kept] and result.score == best
    assert [(s.checkpoint, s.score) for s in result.steps[:5]] == list(
        zip(paths, alone, strict=True)
    )
    assert [s.checkpoint for s in result.steps[5:]] == [paths[i] for i in order]
    assert [s.kept for s in result.steps[5:]] == [i in kept for i in order]
    mean = sum(states[i]["w"].double() for i in kept) / len(kept)
    assert torch.equal(load(out)["w"], mean.float())
    assert seen[:5] == paths and len(seen) == 9
    assert sorted(os.listdir(tmp_path)) == sorted([*before, os.path.basename(out)])
    result.plot(tmp_path / "soup.png")
    assert (tmp_path / "soup.png").read_bytes().startswith(PNG)


def test_alphas(runs, tmp_path):
    (base, tuned, *_), paths, out = runs
    alphas = [0, 0.25, 0.5, 1]
    result = lofi.soup(
        [paths[1]], out, lambda path: score_of(load(path)), base=paths[0], alphas=alphas
    )
    mixed = [(base["w"].double() * (1 - a) + tuned["w"].double() * a).float() for a in alphas]
    scores = [score_of({"w": w}) for w in mixed]
    best = scores.index(max(scores))
    assert [(s.alpha, s.score, s.kept) for s in result.steps] == [
        (a, s, i == best) for i, (a, s) in enumerate(zip(alphas, scores, strict=True))
    ]
    assert (result.alpha, result.score) == (alphas[best], scores[best])
    assert torch.equal(load(out)["w"], mixed[best])
    result.plot(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(PNG)


def test_wrong(runs, tmp_path):
    _, paths, out = runs
    before = sorted(os.listdir(tmp_path))

    def fails(path):
        raise KeyError("as it was raised")

    def fails_at_means(path):
        return 1.0 if path in paths else float("nan")

    with pytest.raises(KeyError, match="as it was raised"):
        lofi.soup(paths, out, fails)
    with pytest.raises(ValueError, match="has to be finite"):
        lofi.soup(paths, out, fails_at_means)
    with pytest.raises(ValueError, match="base and alphas"):
        lofi.soup(paths, out, score_of, base=paths[0])
    with pytest.raises(ValueError, match="mean of equals"):
        lofi.soup(paths, out, score_of, weights=[1] * 5)
    with pytest.raises(TypeError, match="list of paths"):
        lofi.soup(paths[0], out, score_of)
    with pytest.raises(ValueError, match="is an input"):
        lofi.soup(paths, paths[0], score_of, force=True)
    assert sorted(os.listdir(tmp_path)) == before
    Path(out).write_text("there")
    with pytest.raises(FileExistsError, match="force=True"):
        lofi.soup(paths, out, fails)


@pytest.mark.parametrize("kind", [".pt", ".safetensors"])
def test_running_statistics_are_told_once(kind, tmp_path, capfd):
    paths = []
    for seed in range(3):
        state = {"bn.running_mean": torch.full((2,), float(seed)), "w": torch.ones(2)}
        paths.append(tmp_path / f"run{seed}{kind}")
        (torch.save if kind == ".pt" else save_file)(state, paths[-1])
    lofi.soup(paths, tmp_path / f"out{kind}", lambda path: 1.0)
    told = capfd.readouterr().err
    assert told.count("update_bn") == 1 and "1 running statistics" in told
    lofi.soup([paths[0]] * 2, tmp_path / f"frozen{kind}", lambda path: 1.0)
    assert capfd.readouterr().err == ""


@pytest.fixture
def without_torch(tmp_path):
    """An environment in which torch can't be imported."""
    (tmp_path / "poisoned" / "torch").mkdir(parents=True)
    (tmp_path / "poisoned" / "torch" / "__init__.py").write_text("raise ImportError('torch')\n")
    path = [str(tmp_path / "poisoned"), str(Path(program.__file__).parents[1])]
    path += [folder for folder in sys.path if folder not in path]  # where the program is found
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


@pytest.mark.skipif(program.find() is None, reason="the program lofi is not installed")
@pytest.mark.parametrize("options", [[], ["--alpha", "0:1:0.5"], ["--csv", "steps.csv"]])
def test_plot(tmp_path, without_torch, options):
    for number in (1, 3):
        save_file({"w": torch.full((4,), float(number))}, tmp_path / f"run{number}.safetensors")
    command = [sys.executable, "-m", "lofi", "soup", "run1.safetensors", "run3.safetensors"]
    command += ["-o", "out.safetensors", "--score", "echo {} 1", "--plot", "sweep.png", "--json"]
    done = subprocess.run(
        [*command, *options],
        cwd=tmp_path, env=without_torch, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["score"] == 1
    assert (tmp_path / "sweep.png").read_bytes().startswith(PNG)
    assert (tmp_path / "steps.csv").exists() is ("--csv" in options)


@pytest.mark.skipif(program.find() is None, reason="the program lofi is not installed")
def test_ctrl_c_while_it_is_to_plot(tmp_path, without_torch):
    save_file({"w": torch.ones(4)}, tmp_path / "run.safetensors")
    before = sorted(os.listdir(tmp_path))
    command = [sys.executable, "-m", "lofi", "soup", "run.safetensors", "run.safetensors"]
    score = "case {} in run*) echo 1;; *) touch started; sleep 100; esac"
    command += ["-o", "out.safetensors", "--score", score, "--plot=sweep.png"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=without_torch, stderr=subprocess.PIPE, text=True
    ) as running:
        while not (tmp_path / "started").exists():
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
    assert running.returncode == -signal.SIGINT and told == "lofi: the search was interrupted\n"
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "started"])
