# SPDX-License-Identifier: MIT
"""A feature needs its own files and one line of the table, and nothing else in lofi."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from harness.ranks import free_port

ROOT = Path(__file__).resolve().parents[2]
LINE = """
    Feature(
        "throwaway",
        names=("thrown",),
        settings=(Setting("thrown", "far", ("far", "near")),),
        is_launched=True,
    ),
"""
FEATURE = '''
"""Notes which moments it was told of."""

import json
import os

from lofi.job import events, job

EVENTS = ("begun", "wrapped", "training_begins", "backward_synchronised", "step", "evaluation",
          "save", "end")
noted = []


def thrown():
    return job.current().settings.thrown


def install():
    for name in EVENTS:
        getattr(events, name).subscribe(lambda *args, name=name: note(name))


def note(name):
    noted.append(name)
    if name == "end":
        with open(f"noted{os.environ['RANK']}.json", "w") as file:
            json.dump([thrown(), noted], file)
'''
SCRIPT = """
    import lofi, torch, torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel as DDP

    dist.init_process_group("gloo")
    model = DDP(torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        model(torch.ones(3, 4) * (1 + dist.get_rank())).sum().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        model(torch.ones(3, 4))
    if dist.get_rank() == 0:
        torch.save(model.module.state_dict(), "model.pth")
    assert lofi.thrown() == "near"
"""


@pytest.fixture
def package(tmp_path):
    """lofi with one more feature."""
    package = tmp_path / "lofi"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "python" / "lofi", package, ignore=ignored)
    for library in (ROOT / "python" / "lofi").glob("_C*.so"):
        (package / library.name).symlink_to(library)
    table = (package / "features.py").read_text()
    end = table.index("\n)\n", table.index("FEATURES = ("))
    (package / "features.py").write_text(table[:end] + LINE.rstrip() + table[end:])
    (package / "throwaway.py").write_text(FEATURE)
    return package


def run(folder: Path, rank: int, port: int, **env: str) -> subprocess.Popen:
    variables = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        **env,
    }
    command = [sys.executable, "-m", "lofi", "script.py"]
    return subprocess.Popen(command, cwd=folder, env=variables, stderr=subprocess.PIPE, text=True)


def launch(folder: Path, **env: str) -> list[str]:
    """What both nodes wrote to stderr."""
    port = free_port()
    ranks = [run(folder, rank, port, **env) for rank in range(2)]
    return [rank.communicate(timeout=100)[1] for rank in ranks]


def test_a_feature_is_its_files_and_a_line(tmp_path, package):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    errors = launch(tmp_path, LOFI_THROWN="near")
    for rank in range(2):
        path = tmp_path / f"noted{rank}.json"
        assert path.exists(), errors[rank]
        setting, noted = json.loads(path.read_text())
        assert setting == "near"
        saved = ["save"] if rank == 0 else []
        step = ["backward_synchronised", "step"]
        first = ["begun", "wrapped", "backward_synchronised", "training_begins", "step"]
        assert noted == [*first, *step, "evaluation", *saved, "end"]


def test_its_setting_is_one_of_lofi(tmp_path, package):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    for text in launch(tmp_path, LOFI_THROWN="up"):
        assert "LOFI_THROWN is 'up'; use one of far, near" in text


def check_imports(package: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "ci" / "check_imports.py"), str(package)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.quick
def test_the_check_of_imports_takes_it(package):
    done = check_imports(package)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "line", "sentence"),
    [
        ("average/finalize.py", "import lofi.throwaway", "a feature is reached by the table"),
        ("job/phases.py", "from lofi.groups import lookup", "points upwards"),
        ("job/job.py", "def late():\n    from lofi.job import phases", "a circle"),
        ("extra.py", "from lofi.job import job", "extra is no layer"),
    ],
)
def test_the_check_of_imports_refuses(package, module, line, sentence):
    path = package / module
    path.write_text((path.read_text() if path.exists() else "") + f"\n{line}\n")
    done = check_imports(package)
    assert done.returncode == 1 and sentence in done.stderr
