# SPDX-License-Identifier: MIT
"""A cluster on one machine: nodes in network namespaces, joined by links that can be measured.

    with Cluster(nodes=2, mbit=1000) as cluster:
        run = cluster.launch("script.py", ["--epochs", "1"], nproc=2)
        print(run.results[0].stdout, run.traffic, cluster.marks())

Each node has an address, a hostname and a /dev/shm of its own; the processes of a node share
them, as on a real machine. All links end at a bridge in one more namespace, so the host sees none
of it. Traffic between ranks of one node goes over `lo` and is neither limited nor counted.

By hand, from tests/:
    python -m harness.cluster.netns --nodes 2 --nproc 2 --mbit 1000 -- script.py ARGS

Needs Linux, root, iproute2 and util-linux; `requires_root_and_netns()` says what is missing.
Put tests/ on sys.path to import it, as pytest and the benchmarks do.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import functools
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.cluster import leftovers
from harness.cluster.jobs import Job, Process, Run, RunError
from harness.cluster.marks import (
    INTERFACE_VARIABLE,
    MARKS_VARIABLE,
    NODE_VARIABLE,
    Counters,
    parse_counters,
)

INTERFACE = "veth0"
FIRST_PORT = 29500
MAX_NODES = 250
CLONE_NEWNET = 0x40000000
JOB_VARIABLE = "LOFI_TEST_JOB"

# An outer torchrun or Slurm must not speak to the processes of the cluster.
_FOREIGN = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "SLURM_")

# Run in the namespace before the program itself, which takes over the pid. The mounts are seen by
# this process and its children alone: `ip netns exec` has given it a mount namespace. Names in
# /etc/hosts because torch looks up every address it connects to.
_PRELUDE = """
set -e
echo "$0" > /proc/sys/kernel/hostname
mount --bind "$1/hosts" /etc/hosts
mount --bind "$2" /dev/shm
shift 2
exec "$@"
"""

# IPv6 addresses and multicast snooping would talk on idle links. Kernels without IPv6 do as well.
_NO_IPV6 = "f=/proc/sys/net/ipv6/conf/default/disable_ipv6; test ! -e $f || echo 1 > $f"

_numbers = itertools.count()


def requires_root_and_netns() -> str | None:
    """Why clusters cannot be made here, or None if they can. For `pytest.mark.skipif`."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc", "bridge", "unshare", "mount"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    return _probe()


@functools.cache
def _probe() -> str | None:
    # Bare commands: a fault of Cluster must fail its tests, not skip them.
    name = f"{leftovers.own_prefix(next(_numbers))}-probe"
    lines = [
        f"ip netns add {name}",
        f"ip -n {name} link add br0 type bridge",
        f"ip -n {name} link add {INTERFACE} type veth peer name port0",
        f"tc -n {name} qdisc add dev {INTERFACE} root {shaping(100)}",
        f"ip netns exec {name} unshare --uts mount --bind /dev/shm /dev/shm",
    ]
    try:
        for line in lines:
            _command(line.split())
    except RuntimeError as error:
        return f"network namespaces do not work here: {error}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


def shaping(mbit: float) -> str:
    """Arguments of tc for a token bucket of that rate.

    The bucket holds 4 ms, so that a timer that comes late on a busy machine costs no rate, and at
    least two of the largest packets (64 KiB before segmentation), which would be cut up otherwise.
    The queue holds 50 ms more: enough for TCP to fill the link while it recovers from a loss.
    """
    rate = mbit * 1e6 / 8
    burst = max(131072, int(rate * 0.004))
    limit = burst + max(262144, int(rate * 0.05))
    return f"tbf rate {int(mbit * 1e6)}bit burst {burst} limit {limit}"


class Cluster:
    """K nodes and the links between them, gone when the `with` block ends or the process dies.

    `mbit` limits every link in both directions, or one for each node; None is as fast as the
    machine. It counts whole Ethernet frames: TCP carries 95.6 % of it as payload.
    `logdir` keeps the logs of the jobs; by default they go with the cluster. All that it makes is
    named `prefix` and a suffix.
    """

    def __init__(
        self,
        nodes: int = 2,
        mbit: float | Sequence[float | None] | None = None,
        logdir: str | os.PathLike[str] | None = None,
    ) -> None:
        if not 1 <= nodes <= MAX_NODES:
            raise ValueError(f"a cluster has 1 to {MAX_NODES} nodes, not {nodes}")
        rates = list(mbit) if isinstance(mbit, Sequence) else [mbit] * nodes
        if len(rates) != nodes:
            raise ValueError(f"{len(rates)} rates for {nodes} nodes")
        leftovers.sweep()
        self.nodes = nodes
        self._owner = os.getpid()
        self.prefix = leftovers.own_prefix(next(_numbers))
        self._logs = Path(logdir) if logdir else leftovers.log_directory(self.prefix)
        self._jobs = 0
        self._last: Job | None = None
        self._popens: list[subprocess.Popen[bytes]] = []
        self._counter_files: list[int] = []
        self._lock = threading.Lock()
        self._keeper = leftovers.start_keeper(self.prefix)
        atexit.register(self.close)
        try:
            self._build(rates)
        except BaseException:
            self.close()
            raise

    # --- the network

    def _build(self, rates: list[float | None]) -> None:
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (self._switch, *self.namespaces):
            _command(["ip", "netns", "add", name])
            _command(["ip", "netns", "exec", name, "sh", "-c", _NO_IPV6])
        for node in range(self.nodes):
            self._shm(node).mkdir(mode=0o700)
        self._write_hosts()
        _batch("ip", self._switch, self._switch_lines())
        for node, name in enumerate(self.namespaces):
            _batch("ip", name, self._node_lines(node))
        for node, rate in enumerate(rates):
            if rate is not None:
                self.limit(rate, node)
        with ThreadPoolExecutor(1) as other_thread:
            for name in self.namespaces:
                self._counter_files.append(other_thread.submit(_open_counters, name).result())

    def _switch_lines(self) -> list[str]:
        lines = ["link add br0 type bridge stp_state 0 mcast_snooping 0"]
        for node, name in enumerate(self.namespaces):
            peer = f"type veth peer name {INTERFACE} netns {name}"
            lines.append(f"link add port{node} {peer}")
            lines.append(f"link set port{node} master br0 up")
        return [*lines, "link set br0 up"]

    def _node_lines(self, node: int) -> list[str]:
        return [
            "link set lo up",
            f"addr add {self.address(node)}/16 dev {INTERFACE}",
            f"link set {INTERFACE} up",
        ]

    @property
    def _switch(self) -> str:
        return f"{self.prefix}-switch"

    @property
    def namespaces(self) -> list[str]:
        """Names of the nodes' namespaces, as `ip netns` knows them."""
        return [f"{self.prefix}-{node}" for node in range(self.nodes)]

    @property
    def keeper_pid(self) -> int:
        """The process that removes the cluster if this one dies."""
        return self._keeper.pid

    def _shm(self, node: int) -> Path:
        return leftovers.SHM_DIR / self.namespaces[node]

    @property
    def _etc(self) -> Path:
        return leftovers.SHM_DIR / f"{self.prefix}-etc"

    def _write_hosts(self) -> None:
        names = ["127.0.0.1 localhost", "::1 localhost"]
        names += [f"{self.address(node)} node{node}" for node in range(self.nodes)]
        self._etc.mkdir(mode=0o755)
        (self._etc / "hosts").write_text("\n".join(names) + "\n", encoding="ascii")

    def address(self, node: int) -> str:
        """IPv4 address of a node, known inside the cluster only, there also as `node<k>`."""
        return f"10.77.0.{node + 1}"

    def limit(self, mbit: float | None, node: int | None = None) -> None:
        """Set the rate of one node's link, or of all, both directions; None lifts the limit."""
        for k in range(self.nodes) if node is None else [node]:
            # Each end of a veth pair shapes what it sends: the node's end, then the switch's.
            for name, device in ((self.namespaces[k], INTERFACE), (self._switch, f"port{k}")):
                discipline = shaping(mbit) if mbit else "noqueue"
                _batch("tc", name, [f"qdisc replace dev {device} root {discipline}"])

    def cut(self, node: int) -> None:
        """Let the switch drop all packets from and to the node. Nobody is told: no link goes down.

        Some 50 ms of packets that are queued already may still arrive.
        """
        self._set_port(node, "0")

    def restore(self, node: int) -> None:
        """Undo `cut`. A connection goes on when TCP tries again: up to as long as the cut was."""
        self._set_port(node, "3")

    def _set_port(self, node: int, state: str) -> None:
        # States of a bridge port: 0 disabled, 3 forwarding. `ip link` accepts them to no effect.
        _batch("bridge", self._switch, [f"link set dev port{node} state {state}"])

    def counters(self) -> list[Counters]:
        """Bytes each node has sent to and received from other nodes, with headers.

        The kernel counts packets of up to 64 KiB before they are cut into frames, so the headers
        are those of fewer, larger packets.
        """
        texts = (os.pread(file, 65536, 0).decode("ascii") for file in self._counter_files)
        return [parse_counters(text, INTERFACE) for text in texts]

    def shm_files(self, node: int) -> list[str]:
        """What is in the node's /dev/shm now; after a job, what it has left there."""
        return sorted(p.name for p in self._shm(node).iterdir())

    # --- processes

    def spawn(
        self,
        node: int,
        argv: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
        **popen: object,
    ) -> subprocess.Popen[bytes]:
        """Start any program in a node. `env` is added to this process's; `popen` is for Popen.

        The Popen's pid is that of the program, which leads a session of its own. It is killed,
        with all its descendants, when the cluster is closed.
        """
        self._check_open()
        namespace = self.namespaces[node]
        command = ["ip", "netns", "exec", namespace, "unshare", "--uts", "--", "sh", "-c", _PRELUDE]
        command += [f"node{node}", self._etc, self._shm(node), *argv]
        popen.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(
            command, env=self._environment(node, env or {}), start_new_session=True, **popen
        )
        self._popens.append(process)
        return process

    def _environment(self, node: int, env: Mapping[str, str]) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
        here = str(Path(__file__).resolve().parents[2])
        inherited["PYTHONPATH"] = os.pathsep.join(
            filter(None, [env.get("PYTHONPATH", inherited.get("PYTHONPATH")), here])
        )
        return {
            **inherited,
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "TP_SOCKET_IFNAME": INTERFACE,
            "NCCL_SOCKET_IFNAME": INTERFACE,
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            leftovers.CLUSTER_VARIABLE: self.prefix,
            NODE_VARIABLE: str(node),
            INTERFACE_VARIABLE: INTERFACE,
            **{k: v for k, v in env.items() if k != "PYTHONPATH"},
        }

    def start(
        self,
        script: str | os.PathLike[str],
        args: Iterable[object] = (),
        *,
        nproc: int = 1,
        env: Mapping[str, str] | None = None,
        module_args: Sequence[str] = (),
        nodes: Sequence[int] | None = None,
        torchrun: bool = False,
    ) -> Job:
        """Start a job of `nproc` ranks a node and return at once; `Job.wait` ends it.

        `module_args` go before the script, such as ["-m", "lofi"]. `nodes` picks some nodes, which
        are then the whole world of the job; several jobs may run at a time.
        """
        nodes = list(range(self.nodes) if nodes is None else nodes)
        command = [*module_args, os.fspath(script), *map(str, args)]
        job, tag = self._new_job()
        everywhere = {**(env or {}), MARKS_VARIABLE: str(job.directory), JOB_VARIABLE: tag}
        master = self.address(nodes[0]), str(FIRST_PORT + self._jobs)
        start_node = self._start_torchrun if torchrun else self._start_ranks
        try:
            for index, node in enumerate(nodes):
                start_node(job, command, everywhere, master, (node, index, len(nodes), nproc))
        except BaseException:
            job.kill()
            raise
        return job

    def _new_job(self) -> tuple[Job, str]:
        self._check_open()
        with self._lock:
            self._jobs += 1
            number = self._jobs
        directory = self._logs / f"job{number}"
        directory.mkdir(exist_ok=True)
        tag = f"{self.prefix}/{number}"
        kill = functools.partial(leftovers.kill, self.prefix, f"{JOB_VARIABLE}={tag}")
        job = Job(directory, self.counters, kill, before=self.counters())
        self._last = job
        return job, tag

    def _start_ranks(
        self,
        job: Job,
        command: list[str],
        env: dict[str, str],
        master: tuple[str, str],
        place: tuple[int, int, int, int],
    ) -> None:
        node, index, count, nproc = place
        for local in range(nproc):
            rank = index * nproc + local
            ranks = {
                "RANK": str(rank),
                "WORLD_SIZE": str(count * nproc),
                "LOCAL_RANK": str(local),
                "LOCAL_WORLD_SIZE": str(nproc),
                "GROUP_RANK": str(index),
                "MASTER_ADDR": master[0],
                "MASTER_PORT": master[1],
            }
            self._start_logged(job, node, rank, [sys.executable, *command], {**ranks, **env})

    def _start_torchrun(
        self,
        job: Job,
        command: list[str],
        env: dict[str, str],
        master: tuple[str, str],
        place: tuple[int, int, int, int],
    ) -> None:
        node, index, count, nproc = place
        options = {
            "nnodes": count,
            "node-rank": index,
            "nproc-per-node": nproc,
            "master-addr": master[0],
            "master-port": master[1],
        }
        argv = [sys.executable, "-m", "torch.distributed.run"]
        argv += [f"--{key}={value}" for key, value in options.items()]
        self._start_logged(job, node, None, [*argv, *command], env)

    def _start_logged(
        self, job: Job, node: int, rank: int | None, argv: list[str], env: dict[str, str]
    ) -> None:
        stem = f"node{node}" if rank is None else f"rank{rank}"
        out, err = job.directory / f"{stem}.out", job.directory / f"{stem}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            popen = self.spawn(node, argv, env, stdout=stdout, stderr=stderr)
        job.processes.append(Process(node, rank, popen, out, err))

    def launch(
        self,
        script: str | os.PathLike[str],
        args: Iterable[object] = (),
        *,
        timeout: float = 60.0,
        check: bool = True,
        **options: object,
    ) -> Run:
        """Run a job, one process a rank, with the variables torchrun would set.

        Faster than torchrun by one interpreter a node. See `start` and `Job.wait`.
        """
        return self.start(script, args, **options).wait(timeout, check)

    def torchrun(
        self,
        script: str | os.PathLike[str],
        args: Iterable[object] = (),
        *,
        timeout: float = 60.0,
        check: bool = True,
        **options: object,
    ) -> Run:
        """Run a job under torchrun, one in each node. See `start` and `Job.wait`."""
        return self.start(script, args, torchrun=True, **options).wait(timeout, check)

    def marks(self) -> dict[str, dict[int, dict]]:
        """Marks of the job that was started last: see `Job.marks`."""
        return self._last.marks() if self._last else {}

    # --- the end

    def _check_open(self) -> None:
        if self._keeper.stdin is None or self._keeper.stdin.closed:
            raise RuntimeError("the cluster is closed")

    def close(self) -> None:
        """Kill all processes of the cluster and remove it. Safe to call twice."""
        # A fork of the owner inherits the exit handler, but not the cluster.
        if os.getpid() != self._owner or self._keeper.stdin is None or self._keeper.stdin.closed:
            return
        try:
            leftovers.remove(self.prefix)
            for process in self._popens:
                process.wait(leftovers.KILL_SECONDS)
            while self._counter_files:
                os.close(self._counter_files.pop())
        finally:
            # The keeper finds nothing to do, or does what failed above.
            self._keeper.stdin.close()
            self._keeper.wait()
            atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _command(argv: list[str], text: str | None = None) -> None:
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(argv)}: {done.stderr.strip() or done.returncode} {text or ''}"
        )


def _batch(tool: str, namespace: str, lines: list[str]) -> None:
    _command([tool, "-n", namespace, "-batch", "-"], "\n".join(lines) + "\n")


def _open_counters(namespace: str) -> int:
    """A file that reads as the namespace's /proc/net/dev, now and later: 10 µs, no new process.

    The calling thread is left in the namespace, so it must be one that does nothing else.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(leftovers.NETNS_DIR / namespace, os.O_RDONLY)
    try:
        if libc.setns(handle, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    finally:
        os.close(handle)
    return os.open("/proc/thread-self/net/dev", os.O_RDONLY)


# --- by hand


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a script on a cluster of namespaces.")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--nproc", type=int, default=1, help="ranks in each node")
    parser.add_argument("--mbit", type=float, help="rate of each link in Mbit/s")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds")
    parser.add_argument("--torchrun", action="store_true", help="one torchrun in each node")
    parser.add_argument("--sweep", action="store_true", help="only remove what dead owners left")
    parser.add_argument("command", nargs="*", help="after --: script.py ARGS, or -m lofi script.py")
    arguments = parser.parse_args()
    if not arguments.sweep and not arguments.command:
        parser.error("no script given")
    return arguments


def _print_run(run: Run) -> None:
    for result in run.results:
        for stream, text in ((sys.stdout, result.stdout), (sys.stderr, result.stderr)):
            for line in text.splitlines():
                print(f"[{result.label}] {line}", file=stream)
    for node, traffic in enumerate(run.traffic):
        print(f"node {node}: sent {traffic['tx_bytes']} B, received {traffic['rx_bytes']} B")
    print(f"{run.seconds:.2f} s")


def _print_marks(marks: dict[str, dict[int, dict]], started: float) -> None:
    for name, nodes in marks.items():
        for node, m in nodes.items():
            at = m["time"] - started
            print(f"{name} node {node}: {at:.2f} s, sent {m['tx_bytes']}, received {m['rx_bytes']}")


def main() -> int:
    """Run a script as the command line says."""
    a = _arguments()
    if reason := requires_root_and_netns():
        print(reason, file=sys.stderr)
        return 77
    if a.sweep:
        print("\n".join(leftovers.sweep()))
        return 0
    started = time.monotonic()
    with Cluster(nodes=a.nodes, mbit=a.mbit) as cluster:
        script, *args = a.command
        run_it = cluster.torchrun if a.torchrun else cluster.launch
        try:
            run = run_it(script, args, nproc=a.nproc, timeout=a.timeout)
        except RunError as error:
            print(error, file=sys.stderr)
            return 1
        _print_run(run)
        _print_marks(cluster.marks(), started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
