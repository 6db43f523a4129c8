# SPDX-License-Identifier: MIT
"""What a cluster leaves on the machine, and how it is removed, also after a crash.

Everything a cluster makes carries the prefix `lofi-<pid>-<start time of that process>-<number>`:
network namespaces, its directory of logs, its directories in /dev/shm. The start time makes the
owner unmistakable when the kernel hands out the same pid again.

Three ways lead to `remove`: the owner closes the cluster; a keeper process sees that the owner
has died, however that came (`python leftovers.py PREFIX`, waits for the end of its input); and
`sweep`, which the next cluster runs, in case the keeper died too.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NETNS_DIR = Path("/run/netns")
SHM_DIR = Path("/dev/shm")
KILL_SECONDS = 10.0
CLUSTER_VARIABLE = "LOFI_TEST_CLUSTER"

_NAME = re.compile(r"(lofi-(\d+)-(\d+)-\d+)-\w+")


def start_time(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None if it is dead or a zombie."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command may hold blanks and brackets, so count from the last bracket: field 3 follows.
    fields = line.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def own_prefix(number: int) -> str:
    """Prefix of the names of this process's cluster of that number."""
    return f"lofi-{os.getpid()}-{start_time(os.getpid())}-{number}"


def log_directory(prefix: str) -> Path:
    """Where a cluster keeps its logs unless it is told another place."""
    return Path(tempfile.gettempdir(), f"{prefix}-logs")


def _entries() -> Iterator[Path]:
    for directory in (NETNS_DIR, SHM_DIR, Path(tempfile.gettempdir())):
        if directory.is_dir():
            yield from directory.glob("lofi-*")


def namespaces(prefix: str) -> list[str]:
    """Names of the network namespaces of a cluster."""
    return sorted(p.name for p in NETNS_DIR.glob(f"{prefix}-*"))


def _identity(path: str | Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def processes(prefix: str, variable: str = "") -> list[int]:
    """The processes of a cluster, or only those with that NAME=VALUE in their environment.

    They are known by their namespace or their environment, which they have inherited from what
    the cluster started: also those that left their parent, session and process group. The
    environment tells as well of a process that is still on its way into the namespace.
    """
    belongs = _membership(prefix, variable)
    others = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return [pid for pid in others if pid != os.getpid() and belongs(pid)]


def _membership(prefix: str, variable: str) -> Callable[[int], bool]:
    inside = {_identity(NETNS_DIR / name) for name in namespaces(prefix)}
    # A name whose mount is gone must never stand for the namespace that everybody else uses.
    inside -= {None, _identity("/proc/self/ns/net")}
    entry = (variable or f"{CLUSTER_VARIABLE}={prefix}").encode()

    def belongs(pid: int) -> bool:
        in_namespace = not variable and _identity(f"/proc/{pid}/ns/net") in inside
        return in_namespace or _has_environment(pid, entry)

    return belongs


def _has_environment(pid: int, entry: bytes) -> bool:
    try:
        return entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def kill(prefix: str, variable: str = "") -> None:
    """Kill what `processes` finds, until it finds nothing."""
    deadline = time.monotonic() + KILL_SECONDS
    while pids := processes(prefix, variable):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {pids} of {prefix} do not die")
        belongs = _membership(prefix, variable)
        for pid in pids:
            _kill_if(belongs, pid)
        time.sleep(0.005)


def _kill_if(belongs: Callable[[int], bool], pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Looked at once more with the process held: its number may have changed hands meanwhile.
        if belongs(pid):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def remove(prefix: str) -> None:
    """Kill the cluster's processes and remove all that carries its prefix. Safe to repeat."""
    kill(prefix)
    deadline = time.monotonic() + KILL_SECONDS
    # More than one round where somebody else is removing the same leftovers: what counts is that
    # they are gone in the end.
    while names := namespaces(prefix):
        if time.monotonic() > deadline:
            raise TimeoutError(f"network namespaces {names} could not be removed")
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    # Only now can nobody enter any more; a process may have done so since the first look.
    kill(prefix)
    for path in (*SHM_DIR.glob(f"{prefix}-*"), log_directory(prefix)):
        if _is_own_directory(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_own_directory(path: Path) -> bool:
    # Anybody may write to /dev/shm and /tmp: never follow a link, never touch others' files.
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def sweep() -> list[str]:
    """Remove what clusters of dead processes have left; the prefixes of what was removed."""
    dead = set()
    for path in _entries():
        match = _NAME.fullmatch(path.name)
        if match and start_time(int(match[2])) != match[3]:
            dead.add(match[1])
    for prefix in sorted(dead):
        remove(prefix)
    return sorted(dead)


def start_keeper(prefix: str) -> subprocess.Popen[bytes]:
    """A process that removes the cluster as soon as this one is gone, or closes its stdin.

    A signal handler or PR_SET_PDEATHSIG would do less: the one is not run on SIGKILL, the other
    reaches children but not their children, and follows the thread that forked, not the process.
    """
    return subprocess.Popen(
        [sys.executable, "-S", __file__, prefix],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # out of reach of Ctrl-C and of a kill of the owner's group
    )


if __name__ == "__main__":
    sys.stdin.buffer.read()
    remove(sys.argv[1])
