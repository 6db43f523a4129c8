# SPDX-License-Identifier: MIT
"""The program lofi as pip installs it, and as `python -m lofi` runs it."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from lofi import program
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path):
    for number in (1, 3):
        save_file({"w": torch.full((4,), float(number))}, tmp_path / f"run{number}.safetensors")
    return tmp_path


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """An environment in which torch can't be imported."""
    folder = tmp_path_factory.mktemp("poisoned")
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise ImportError('torch was imported')\n")
    path = os.pathsep.join([str(folder), str(Path(program.__file__).parents[1])])
    return {**os.environ, "PYTHONPATH": path}


def run(command, folder, env=None):
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


@pytest.fixture(params=["program", "module"])
def lofi(request, without_torch):
    """The two ways to run it."""
    start = [program.find()] if request.param == "program" else [sys.executable, "-m", "lofi"]

    def of(*arguments, folder):
        return run([*start, *arguments], folder, without_torch)

    return of


@pytest.mark.quick
def test_average_info_diff(lofi, runs):
    inputs = ["run1.safetensors", "run3.safetensors"]
    done = lofi("average", *inputs, "-o", "mean.safetensors", "--verify", folder=runs)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith("read again and verified")
    assert torch.equal(load_file(runs / "mean.safetensors")["w"], torch.full((4,), 2.0))
    shown = lofi("info", "--json", "mean.safetensors", folder=runs)
    assert "mean.safetensors" in json.loads(shown.stdout)["path"]
    apart = lofi("diff", "--json", *inputs, folder=runs)
    # Four numbers that are 2 apart.
    assert json.loads(apart.stdout)["all"]["distance"] == 4 and apart.returncode == 0


def test_json_says_whether_it_was_verified(lofi, runs):
    for options, verified in (([], False), (["--verify"], True)):
        arguments = ["run1.safetensors", "-o", f"out{verified}.safetensors", "--json", *options]
        done = lofi("average", *arguments, folder=runs)
        assert json.loads(done.stdout)["verified"] is verified


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["average", "--bogus"], "lofi: --bogus is no option"),
        (["average", "-o"], "lofi: -o needs a value"),
        (["average", "--force=yes", "a"], "lofi: --force=yes: this option takes no value"),
        (["average", "--s", "a"], "lofi: --s is no option, or the beginning of several"),
        (["info", "-x"], "lofi: -x is no option"),
        (["average", "--force", "-xq", "a"], "lofi: -x is no option"),
        (["average", "--output=b", "-qxf", "a"], "lofi: -x is no option"),
        (["average", "-fo"], "lofi: -o needs a value"),
        (["average", "a", "--weights"], "lofi: --weights needs a value"),
        (["diff", "one"], "lofi: it takes at least two checkpoints"),
        (["average", "a"], "lofi: the output is not given"),
    ],
)
def test_wrong_arguments(lofi, runs, arguments, told):
    done = lofi(*arguments, folder=runs)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(told) and f"(lofi {arguments[0]} --help)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_not_there(lofi, runs):
    done = lofi("info", "missing.safetensors", folder=runs)
    assert done.returncode == 1 and done.stderr.startswith("lofi: ")
    assert "missing.safetensors" in done.stderr


@pytest.mark.parametrize("spelling", ["-mlofi", "-umlofi", "-um lofi", "-X dev -m lofi"])
def test_however_python_is_told_the_module(spelling, runs, without_torch):
    command = [sys.executable, *spelling.split(), "info", "run1.safetensors"]
    done = run(command, runs, without_torch)
    assert done.returncode == 0 and "run1.safetensors" in done.stdout, done.stderr


def test_another_word_is_a_script(runs):
    """`python -m lofi average.py` launches a script; so does whatever is no command."""
    (runs / "average.py").write_text("print('the script runs')\n")
    done = run([sys.executable, "-m", "lofi", "average.py"], runs)
    assert "the script runs" in done.stdout


def test_without_the_program(monkeypatch):
    monkeypatch.setattr(program.metadata, "distributions", lambda name: [])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="the program for `average` is not found"):
        program.run(["average"])


@pytest.mark.slow
def test_a_wheel_has_it(tmp_path, runs):
    """Built as pip builds it, installed where there is neither torch nor anything else."""
    command = [
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"),
        *("--wheel-dir", str(tmp_path), str(ROOT)),
    ]
    # pip takes a lofi that it finds on the path for an installed one.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, env=env, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    assert any(name.endswith(".data/scripts/lofi") for name in zipfile.ZipFile(wheel).namelist())
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    pip += ["--no-deps", "--no-index", str(wheel)]
    env["PATH"] = os.defpath  # on which no lofi is

    def runs_by(*start, env=env):
        done = run([*start, "info", "run1.safetensors"], runs, env)
        assert done.returncode == 0 and "run1.safetensors" in done.stdout, done.stderr

    target = tmp_path / "target"
    subprocess.run([*pip, "--target", str(target)], env=env, check=True, timeout=120)
    runs_by(str(python), "-m", "lofi", env={**env, "PYTHONPATH": str(target)})
    subprocess.run(pip, env=env, check=True, timeout=120)
    runs_by(str(python.parent / "lofi"))
    runs_by(str(python), "-m", "lofi")
