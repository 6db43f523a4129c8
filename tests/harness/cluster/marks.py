# SPDX-License-Identifier: MIT
"""Marks: a worker says "now", and the traffic of its node up to that moment is written down.

In a script that runs on a `netns.Cluster`:

    from harness.cluster.marks import mark
    mark("training_begin")

The parent reads the marks with `Job.marks()` or `Cluster.marks()`. Outside a cluster `mark` does
nothing, so a script may keep its calls.

Counters belong to the node, not to the rank: put a barrier of the node in front of the call where
the other ranks' traffic has to be in, or out.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

Counters = dict[str, int]

MARKS_VARIABLE = "LOFI_TEST_MARKS"
NODE_VARIABLE = "LOFI_TEST_NODE"
INTERFACE_VARIABLE = "LOFI_TEST_IFNAME"


def parse_counters(proc_net_dev: str, interface: str) -> Counters:
    """Bytes received and sent by one interface, from the text of /proc/net/dev."""
    for line in proc_net_dev.splitlines():
        name, colon, fields = line.partition(":")
        if colon and name.strip() == interface:
            numbers = fields.split()
            return {"tx_bytes": int(numbers[8]), "rx_bytes": int(numbers[0])}
    raise LookupError(f"no interface {interface} in this network namespace")


def own_counters() -> Counters:
    """Counters of this process's node."""
    # /proc/net is that of the reading process; /sys may be mounted for another namespace.
    text = Path("/proc/net/dev").read_text(encoding="ascii")
    return parse_counters(text, os.environ[INTERFACE_VARIABLE])


def mark(name: str) -> None:
    """Record time (monotonic, comparable between processes) and counters under `name`.

    A second mark of the same name by the same rank replaces the first.
    """
    directory = os.environ.get(MARKS_VARIABLE)
    if directory is None:
        return
    record = {
        "name": name,
        "node": int(os.environ[NODE_VARIABLE]),
        "rank": int(os.environ.get("RANK", "0")),
        "time": time.monotonic(),
        **own_counters(),
    }
    slug = "".join(c if c.isalnum() else f"%{ord(c):x}" for c in name)
    target = Path(directory, f"{slug}.{record['node']}.{record['rank']}.json")
    # Written aside and renamed: the parent may be polling for it.
    scratch = target.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(record), encoding="utf-8")
    scratch.rename(target)


def read_marks(directory: Path) -> list[dict]:
    """All records under `directory`, by rank within each name."""
    records = [json.loads(p.read_text(encoding="utf-8")) for p in directory.glob("*.json")]
    return sorted(records, key=lambda r: (r["name"], r["node"], r["rank"]))
