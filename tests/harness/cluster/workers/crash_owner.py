# SPDX-License-Identifier: MIT
"""Worker: owns a cluster with two processes, one of them an orphan without environment.

Says what it made, and waits.
"""

import json
import subprocess
import time
from pathlib import Path

from harness.cluster import leftovers
from harness.cluster.netns import Cluster


def commands(prefix: str) -> list[str]:
    """What the processes of the cluster are by now; one may end while we look."""
    files = [Path(f"/proc/{pid}/comm") for pid in leftovers.processes(prefix)]
    return [file.read_text().strip() for file in files if file.exists()]


with Cluster(nodes=2, mbit=100) as cluster:
    line = "setsid env -i sleep 1000 & exec sleep 1000"
    # Not our stdout: the parent waits for its end.
    cluster.spawn(1, ["sh", "-c", line], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while commands(cluster.prefix) != ["sleep", "sleep"]:
        assert time.monotonic() < deadline, commands(cluster.prefix)
        time.sleep(0.01)
    made = {
        "prefix": cluster.prefix,
        "keeper": cluster.keeper_pid,
        "processes": leftovers.processes(cluster.prefix),
    }
    print(json.dumps(made), flush=True)
    time.sleep(1000)
