# SPDX-License-Identifier: MIT
"""`torchrun -m lofi script.py`: what the script sees, and what there is when it has ended."""

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
from harness.truth import mean_of_states

SCRIPT = """
import argparse, json, os, pickle, sys
import torch, torch.distributed as dist
import torch._dynamo
from torch.nn.parallel import DistributedDataParallel as DDP
import helper

class Note:
    pass

def main():
    dist.init_process_group({backend})
    rank = dist.get_rank()
    torch.manual_seed(rank)
    model = DDP(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    group = dist.new_group(backend="gloo")
    seen = dict(
        argv=sys.argv, path=sys.path[0], name=__name__, file=__file__, backend=dist.get_backend(),
        group=dist.get_backend(group), helper=helper.__file__,
        note=type(pickle.loads(pickle.dumps(Note()))) is Note,
    )
    json.dump(seen, open(f"seen{{rank}}.json", "w"))
    for step in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        if rank == 0 and step == {last_save}:
            torch.save(
                dict(model=model.state_dict(), optimizer=optimizer.state_dict(), epoch=7,
                     best=model.module[0].weight.detach() * 2, args=argparse.Namespace(lr=0.1)),
                "checkpoint.pth",
            )
    with open(f"own{{rank}}.bin", "wb") as file:
        file.write(b"TEST")  # so that it is no file of weights, to lofi
        torch.save(model.module.state_dict(), file, _use_new_zipfile_serialization=False)
    {end}

main()
"""


def run(folder, *, backend='"gloo"', last_save=3, end="", arguments=("--x", "1"), **env):
    (folder / "src").mkdir(exist_ok=True)
    script = folder / "src" / "train.py"
    text = textwrap.dedent(SCRIPT).format(backend=backend, last_save=last_save, end=end)
    script.write_text(text)
    (folder / "src" / "helper.py").write_text("")
    variables = {
        **os.environ, "LOFI_NODE_SIZE": "1", "OMP_NUM_THREADS": "1",
        "LOFI_STATS": str(folder / "stats"), "GLOO_SOCKET_IFNAME": "lo", **env,
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "lofi", "src/train.py", *arguments]
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120
    )


def load(path):
    data = path.read_bytes().removeprefix(b"TEST")
    return torch.load(io.BytesIO(data), weights_only=False)


def mean_of_nodes(folder):
    return mean_of_states(*(load(folder / f"own{rank}.bin") for rank in (0, 1)))


def check_average(folder, state):
    for name, value in mean_of_nodes(folder).items():
        assert torch.equal(state[name], value), name
    assert not torch.equal(load(folder / "own0.bin")["0.weight"], state["0.weight"])


def test_the_script_and_its_checkpoint(tmp_path):
    """Nothing is destroyed, and the model lives in main(): the end of the process averages."""
    result = run(tmp_path)
    assert result.returncode == 0, result.stderr
    assert "terminate called" not in result.stderr
    seen = json.loads((tmp_path / "seen1.json").read_text())
    assert seen["argv"] == ["src/train.py", "--x", "1"]
    assert seen["path"] == str(tmp_path / "src") and seen["file"] == "src/train.py"
    assert seen["name"] == "__main__" and seen["note"]
    assert seen["backend"] == "gloo" and seen["group"] == "gloo"
    assert Path(seen["helper"]) == tmp_path / "src" / "helper.py"

    own, average = load(tmp_path / "checkpoint.pth"), load(tmp_path / "checkpoint.lofi.pth")
    check_average(tmp_path, {k.removeprefix("module."): v for k, v in average["model"].items()})
    assert average["epoch"] == 7 and average["args"] == own["args"]
    assert torch.equal(average["best"], own["best"])
    moments = [c["optimizer"]["state"][0]["exp_avg"] for c in (own, average)]
    assert torch.equal(*moments)
    assert "checkpoint.lofi.pth" in result.stderr

    stats = [json.loads((tmp_path / f"stats.rank{r}.json").read_text()) for r in (0, 1)]
    for rank_stats in stats:
        assert rank_stats["phase"] == "done"
        assert rank_stats["cross_bytes"]["training"] == 0 < rank_stats["cross_bytes"]["average"]
        assert sum(rank_stats["collectives"]["world"][p] for p in ("training", "bypass")) == 0


def test_destroy_after_an_earlier_save(tmp_path):
    """The script's last file is of an earlier step: it is left alone, and its form is kept."""
    result = run(tmp_path, backend="", last_save=1, end="dist.destroy_process_group()")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "seen0.json").read_text())["backend"] == "undefined"  # as ever
    own, average = (load(tmp_path / f"checkpoint{mark}.pth") for mark in ("", ".lofi"))
    state = {name.removeprefix("module."): value for name, value in average["model"].items()}
    check_average(tmp_path, state)
    assert own["epoch"] == average["epoch"] == 7
    assert "as the script saved it 2 steps before the end" in result.stderr


# A finally runs while the exception is being handled.
BAD_END = """
    try:
        raise ValueError("boom")
    finally:
        dist.destroy_process_group()
"""


def test_a_run_that_ends_badly_averages_nothing(tmp_path):
    result = run(tmp_path, backend='"cpu:gloo,cuda:nccl"', end=BAD_END)
    assert result.returncode != 0
    assert json.loads((tmp_path / "seen0.json").read_text())["backend"] == "cpu:gloo,cuda:nccl"
    assert not (tmp_path / "checkpoint.lofi.pth").exists()
    assert "holds the weights of node 0 alone" in result.stderr


SPAWNING = """
import json, os, torch, torch.distributed as dist, torch.multiprocessing as mp

def child(rank):
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29617", rank=rank, world_size=2)
    import lofi
    json.dump(lofi.stats(), open(f"child{rank}.json", "w"))
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(child, nprocs=2)
"""


def test_children_of_mp_spawn_and_the_module_form(tmp_path):
    (tmp_path / "spawning.py").write_text(SPAWNING)
    command = [sys.executable, "-m", "lofi", "-m", "spawning"]
    env = {**os.environ, "LOFI_NODE_SIZE": "1", "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    nodes = [json.loads((tmp_path / f"child{rank}.json").read_text())["nodes"] for rank in (0, 1)]
    assert nodes == [2, 2]


def test_a_missing_script(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "lofi", "nowhere.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode != 0 and "there is no script 'nowhere.py'" in result.stderr
