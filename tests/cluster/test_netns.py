# SPDX-License-Identifier: MIT
"""The cluster is what the other tests measure with, so it is measured first."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.cluster import WORKERS, leftovers
from harness.cluster.jobs import RunError
from harness.cluster.marks import parse_counters
from harness.cluster.netns import INTERFACE, Cluster, requires_root_and_netns

REASON = requires_root_and_netns()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]
needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is missing")

MIB = 1 << 20


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    """Two nodes with links as fast as the machine."""
    with Cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def slow() -> Iterator[Cluster]:
    """Two nodes at 200 Mbit/s."""
    with Cluster(nodes=2, mbit=200) as cluster:
        yield cluster


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether the condition comes true in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# --- what it takes


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert requires_root_and_netns() == "ip is not installed"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert requires_root_and_netns() == "network namespaces need root"


# --- counters


@needs_torch
def test_counters_see_an_all_reduce(pair: Cluster) -> None:
    size = 8
    run = pair.launch(WORKERS / "allreduce.py", [size], timeout=50)
    marks = pair.marks()
    for node in range(2):
        for key in ("tx_bytes", "rx_bytes"):
            between = marks["end"][node][key] - marks["begin"][node][key]
            # A ring of two sends each half of the payload twice. Headers and barriers are 2 %; a
            # busy machine adds segments that TCP sends again.
            assert size * MIB <= between <= 1.1 * size * MIB
            assert between <= run.traffic[node][key] <= between + 64 * 1024


@needs_torch
def test_torchrun_in_each_node(pair: Cluster) -> None:
    # A worker without torch: the two torchruns cost seconds enough.
    run = pair.torchrun(WORKERS / "transfer.py", [MIB], nproc=2, timeout=50)
    assert [(r.node, r.rank, r.returncode) for r in run.results] == [(0, None, 0), (1, None, 0)]
    assert float(run.results[0].stdout) > 0
    # Of the three senders two are in the other node.
    assert 2 * MIB <= run.traffic[1]["tx_bytes"] <= 2.2 * MIB


def test_traffic_inside_a_node_is_not_counted(pair: Cluster) -> None:
    run = pair.launch(WORKERS / "transfer.py", [4 * MIB], nproc=2, nodes=[1], timeout=10)
    assert float(run.results[0].stdout) > 0
    assert all(t["tx_bytes"] + t["rx_bytes"] < 10_000 for t in run.traffic)


def test_idle_links_are_silent(pair: Cluster) -> None:
    before = pair.counters()
    time.sleep(1)
    for was, now in zip(before, pair.counters(), strict=True):
        assert now["tx_bytes"] - was["tx_bytes"] + now["rx_bytes"] - was["rx_bytes"] < 10_000


def test_unknown_interface_is_an_error() -> None:
    with pytest.raises(LookupError, match="veth9"):
        parse_counters(Path("/proc/net/dev").read_text(encoding="ascii"), "veth9")


# --- links


def goodput(cluster: Cluster, total: int) -> float:
    """Mbit/s that arrive at node 0 when node 1 sends it `total` bytes."""
    run = cluster.launch(WORKERS / "transfer.py", [total], timeout=15)
    return float(run.results[0].stdout)


def test_rate_limit_holds(slow: Cluster) -> None:
    check_rate(slow)


@pytest.mark.parametrize("node", [0, 1], ids=["receiver", "sender"])
def test_rate_limit_of_one_end_holds(pair: Cluster, node: int) -> None:
    try:
        pair.limit(200, node)
        check_rate(pair)
    finally:
        pair.limit(None)
    assert goodput(pair, 30_000_000) > 220


def check_rate(cluster: Cluster) -> None:
    """Whether 30 MB go from node 1 to node 0 at 200 Mbit/s."""
    measured = goodput(cluster, 30_000_000)
    if not 170 <= measured <= 202:
        measured = goodput(cluster, 30_000_000)  # other work on the machine
    assert 170 <= measured <= 202


def test_each_node_may_have_its_rate() -> None:
    with pytest.raises(ValueError, match="1 rates for 2 nodes"):
        Cluster(nodes=2, mbit=[100])
    with Cluster(nodes=2, mbit=[None, 40]) as cluster:
        assert 34 <= goodput(cluster, 2_000_000) <= 42  # the bucket's 128 KiB are 6 % of it


def test_cut_stops_a_transfer_and_restore_allows_the_next(slow: Cluster) -> None:
    job = slow.start(WORKERS / "transfer.py", [20_000_000])
    job.wait_for_mark("flowing", timeout=10, count=1)
    slow.cut(1)
    run = job.wait(timeout=3, check=False)
    slow.restore(1)
    assert run.stopped.startswith("out of time")
    assert [r.killed for r in run.results] == [True, True]
    # Takes 0.8 s on a whole link, so without the cut the job above would have ended.
    assert 100 < goodput(slow, 20_000_000) < 202


# --- jobs


def test_failure_is_told_with_the_logs(pair: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        "import os, sys, time\nprint('hello from', os.environ['RANK'])\n"
        "if os.environ['RANK'] == '1': sys.exit('no luck')\ntime.sleep(1000)\n"
    )
    with pytest.raises(
        RunError, match=r"(?s)first failure.*hello from 0.*exit 1.*no luck"
    ) as error:
        pair.launch(script, timeout=30)
    run = error.value.run
    assert run.seconds < 15
    assert [(r.returncode, r.killed) for r in run.results] == [(-signal.SIGKILL, True), (1, False)]


def test_deadline_takes_descendants_along(pair: Cluster, tmp_path: Path) -> None:
    bystander = pair.spawn(0, ["sleep", "1000"])
    script = tmp_path / "forks.py"
    script.write_text(
        "import subprocess, time\nfrom harness.cluster.marks import mark\n"
        "subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "mark('a mark/with signs')\ntime.sleep(1000)\n"
    )
    job = pair.start(script, nodes=[0])
    job.wait_for_mark("a mark/with signs", timeout=10)
    assert eventually(lambda: len(leftovers.processes(pair.prefix)) == 3)
    run = job.wait(timeout=1, check=False)
    assert run.stopped
    assert leftovers.processes(pair.prefix) == [bystander.pid]
    bystander.kill()
    bystander.wait()


def test_nodes_are_machines_of_their_own(pair: Cluster) -> None:
    def shell(node: int, line: str) -> str:
        process = pair.spawn(node, ["sh", "-c", line], stdout=subprocess.PIPE)
        return process.communicate(timeout=10)[0].decode().strip()

    segment = f"segment-{os.getpid()}"
    assert shell(0, f"touch /dev/shm/{segment}; cat /proc/sys/kernel/hostname") == "node0"
    assert shell(0, "ls /dev/shm") == segment
    assert shell(1, "ls /dev/shm; cat /proc/sys/kernel/hostname") == "node1"
    assert shell(0, "grep node1 /etc/hosts") == f"{pair.address(1)} node1"
    assert pair.shm_files(0) == [segment]
    assert not (leftovers.SHM_DIR / segment).exists()


# --- removal


def seen_from_host(prefix: str) -> set[str]:
    """Interfaces like a cluster's, and mounts of that cluster, where the host sees them."""
    links = {path.name for path in Path("/sys/class/net").iterdir()}
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").split()
    return (links & {INTERFACE, "port0", "port1"}) | {m for m in mounts if prefix in m}


def remains(prefix: str) -> list[str]:
    """What there is under a cluster's prefix."""
    paths = [*leftovers.SHM_DIR.glob(f"{prefix}-*"), leftovers.log_directory(prefix)]
    return leftovers.namespaces(prefix) + [str(p) for p in paths if p.exists()]


def test_close_leaves_nothing() -> None:
    with Cluster(nodes=2, mbit=100) as cluster:
        prefix = cluster.prefix
        process = cluster.spawn(0, ["sleep", "1000"])
        # Two nodes and the switch, as `ip netns` mounts them; /dev/shm of each, /etc; the logs.
        assert {Path(mount).parent for mount in seen_from_host(prefix)} == {leftovers.NETNS_DIR}
        assert len(remains(prefix)) == 3 + 3 + 1
        assert prefix not in leftovers.sweep()
    assert process.returncode == -signal.SIGKILL
    assert remains(prefix) == []
    assert seen_from_host(prefix) == set()
    with pytest.raises(RuntimeError, match="closed"):
        cluster.spawn(0, ["true"])


def test_removal_finds_a_process_on_its_way_into_the_namespace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    late = tmp_path / "ip"
    late.write_text(f'#!/bin/sh\ntest "$2" != exec || sleep 1000\nexec {shutil.which("ip")} "$@"\n')
    late.chmod(0o755)
    with Cluster(nodes=1) as cluster:
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        process = cluster.spawn(0, ["true"])
        # The shell and its sleep, both still in the host's namespace.
        assert eventually(lambda: len(leftovers.processes(cluster.prefix)) == 2)
        pids = leftovers.processes(cluster.prefix)
        leftovers.remove(cluster.prefix)
        assert process.wait(timeout=10) == -signal.SIGKILL
        assert dead(pids)


@contextmanager
def crash_owner() -> Iterator[tuple[subprocess.Popen[str], dict]]:
    """A process that owns a cluster, and what it made."""
    environment = {**os.environ, "PYTHONPATH": str(WORKERS.parents[2])}
    argv = [sys.executable, str(WORKERS / "crash_owner.py")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        try:
            made = json.loads(owner.stdout.readline())
            yield owner, made
        finally:
            owner.kill()


def dead(pids: list[int]) -> bool:
    """Whether none of the processes lives."""
    return all(leftovers.start_time(pid) is None for pid in pids)


def test_keeper_removes_the_cluster_of_a_killed_owner() -> None:
    with crash_owner() as (owner, made):
        assert len(made["processes"]) == 2
        assert not dead(made["processes"])
        owner.kill()
        assert eventually(lambda: remains(made["prefix"]) == [])
        assert dead(made["processes"])


def test_sweep_removes_what_a_killed_owner_and_keeper_left() -> None:
    with crash_owner() as (owner, made):
        os.kill(made["keeper"], signal.SIGKILL)
        assert made["prefix"] not in leftovers.sweep()  # the owner lives
        assert not dead(made["processes"])
        owner.kill()
        # Not waited for: the owner stays in the process table as a zombie.
        assert eventually(lambda: dead([owner.pid]))
        time.sleep(0.2)
        assert len(remains(made["prefix"])) == 7
        assert not dead(made["processes"])
        assert made["prefix"] in leftovers.sweep()
        assert remains(made["prefix"]) == []
        assert dead(made["processes"])
