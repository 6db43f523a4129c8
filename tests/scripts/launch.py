# SPDX-License-Identifier: MIT
"""Published scripts, as they are, under torchrun: with lofi, and without.

    run = launch(folder, python, script, args, ranks=4, node_size=2)

What the ranks did comes from observe/sitecustomize.py; what they printed is in the folder's log and
in the error of a run that fails.
"""

import json
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import truth

HERE = Path(__file__).parent
NODES, NODE_SIZE = 2, 2
RANKS = NODES * NODE_SIZE
TIMEOUT = 400
SHOWN = 12000  # characters of a failed run's log


def needed(name: str, *files: str) -> Path:
    """The path that an environment variable gives; without it, the test is skipped."""
    value = os.environ.get(name)
    if not value:
        pytest.skip(f"{name} is not set")
    path = Path(value)
    for file in files:
        assert (path / file).exists(), f"{name}={value} has no {file}"
    return path


def interpreter() -> Path:
    return needed("LOFI_TEST_PYTHON")


@dataclass
class Run:
    folder: Path
    ranks: int

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text(errors="replace")

    def steps(self, rank: int) -> list[str]:
        """Digests of the parameters after each step."""
        lines = (self.folder / f"steps.rank{rank}.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
        return [step["digest"] for step in steps]

    def last(self, rank: int, kind: str = "last") -> dict[str, torch.Tensor]:
        """The weights as the rank's last step left them."""
        return torch.load(self.folder / f"{kind}.rank{rank}.pt", weights_only=True)

    def stats(self, rank: int) -> dict[str, Any]:
        return json.loads((self.folder / f"stats.rank{rank}.json").read_text())


def launch(
    folder: Path,
    python: Path | str,
    script: Path,
    args: list[str],
    *,
    ranks: int,
    node_size: int | None = None,
    paths: tuple[Path, ...] = (),
    env: dict[str, str] | None = None,
) -> Run:
    """Run the script to its end: by lofi, or without a node_size by itself; one rank: no torchrun.

    A rank that fails makes torchrun fail, and this.
    """
    folder.mkdir(parents=True)
    command = [str(python)]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={ranks}"]
        command += ["--master-addr=127.0.0.1", f"--master-port={_free_port()}"]
    if node_size:
        command += ["-m", "lofi"]
    command += [str(script), *args]
    variables = _variables(folder, (HERE / "observe", *paths))
    if node_size:
        variables["LOFI_NODE_SIZE"] = str(node_size)
        variables["LOFI_STATS"] = str(folder / "stats")
    _run(command, variables | (env or {}), folder)
    return Run(folder, ranks)


def _variables(folder: Path, paths: tuple[Path, ...]) -> dict[str, str]:
    """The caller's environment without lofi's settings, but for what evaluation uses."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LOFI_") or name == "LOFI_EVAL"
    }
    before = [kept["PYTHONPATH"]] if kept.get("PYTHONPATH") else []
    return kept | {
        "PYTHONPATH": os.pathsep.join([*map(str, paths), *before]),
        "LOFI_TEST_OBSERVE": str(folder),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _run(command: list[str], variables: dict[str, str], folder: Path) -> None:
    path = folder / "log.txt"
    with path.open("wb") as log:
        process = subprocess.Popen(
            command, env=variables, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
        try:
            status: int | str = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            status = f"none within {TIMEOUT} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if status != 0:
        shown = path.read_text(errors="replace")[-SHOWN:]
        raise AssertionError(f"status {status}: {' '.join(command)}\n{shown}\n(log: {path})")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- what is true of every script ----------------------------------------------------------------


def check_apart(run: Run, crosses: bool = False) -> None:
    """Each node is of one mind after every step, and of its own; nothing crossed nodes (but where
    the script reads its data on rank 0 for all)."""
    steps = [run.steps(rank) for rank in range(RANKS)]
    assert len(steps[0]) > 1
    for node in range(NODES):
        members = steps[node * NODE_SIZE : (node + 1) * NODE_SIZE]
        assert all(member == members[0] for member in members), f"node {node} drifted apart"
    first, second = steps[0], steps[NODE_SIZE]
    assert len(first) == len(second)
    assert not set(first) & set(second), "the nodes did not train apart"
    crossed = [run.stats(rank)["cross_bytes"]["training"] for rank in range(RANKS)]
    assert (sum(crossed) > 0) == crosses, crossed


def check_same(one: Run, other: Run) -> None:
    """Two runs took the same steps, to the bit."""
    for rank in range(one.ranks):
        assert one.steps(rank) == other.steps(rank)


def check_mean(run: Run, saved: dict[str, torch.Tensor], kind: str = "last") -> None:
    """What is saved is the mean of the nodes' last weights, rounded once."""
    nodes = [run.last(node * NODE_SIZE, kind) for node in range(NODES)]
    assert saved.keys() == nodes[0].keys()
    mean = {name: truth.mean([node[name] for node in nodes]) for name in saved}
    own = [name for name in saved if torch.equal(saved[name], nodes[0][name])]
    wrong = [name for name in saved if not torch.equal(saved[name], mean[name])]
    assert not wrong, (
        f"{len(wrong)} of {len(saved)} tensors are not the mean, such as {wrong[:3]}; "
        f"{len(own)} are node 0's own"
    )
