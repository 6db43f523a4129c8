# SPDX-License-Identifier: MIT
"""torchrun --max-restarts: its agent starts the ranks again, with the first attempt's store."""

import os
import subprocess
import sys
import textwrap

import torch
from harness import truth

SCRIPT = """
    import os, signal, torch, torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel as DDP

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DDP(torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(torch.full((3, 4), rank + 1.0)).square().mean().backward()
        optimizer.step()
        if step == 1 and rank == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
    with open(f"own{rank}", "wb") as file:
        file.write(b"TEST")  # no file of weights, to lofi
        torch.save(model.module.state_dict(), file)
    if rank == 0:
        torch.save(model.module.state_dict(), "last.pt")
"""


def test_a_job_whose_rank_was_killed(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    before = set(os.listdir("/dev/shm"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    command += ["--max-restarts=1", "-m", "lofi", "train.py"]
    env = {**os.environ, "LOFI_NODE_SIZE": "2", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    own = []
    for rank in (0, 2):
        with open(tmp_path / f"own{rank}", "rb") as file:
            file.seek(4)
            own.append(torch.load(file, weights_only=True))
    average = torch.load(tmp_path / "last.lofi.pt", weights_only=True)
    for name, value in truth.mean_of_states(*own).items():
        assert torch.equal(average[name], value)
    left = {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("lofi")}
    assert not left
