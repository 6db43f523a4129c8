# SPDX-License-Identifier: MIT
"""Steps of DistributedDataParallel as torch's profiler sees them: what overlaps with the backward.

    python bench/trace.py [--steps 20] [--out bench/out]

Two ranks of one node train the demo's model (examples/vision), and a transformer of 25 million
parameters. The demo's is smaller than a bucket of DDP's, whose all_reduce can't begin before the
backward ends: its buckets are of 100 KiB here, the transformer's of 25 MiB, as ever. Of the steps
profiled the shortest is kept, as the first rank sees it: trace-demo.json.gz, for
ui.perfetto.dev or chrome://tracing, and so on, and trace.png of both.

hidden_ms is the time of the all_reduces up to the issue of the last one, which is when the backward
has no more to compute; waited_ms is what the step then waits for. Torch runs on one thread.
"""

import argparse
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import two_groups
from ddp_step import MODELS
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile, record_function

BUCKETS_MIB = {"demo": 100 / 1024, "25M transformer": 25}
KEPT = ("name", "ph", "ts", "dur", "pid", "tid", "id", "bp", "cat", "args")
PARTS = {"forward": "tab:blue", "backward": "tab:orange", "optimizer": "tab:green"}
ISSUE, COLLECTIVE = "c10d::allreduce_", "lofi:all_reduce"


def step_of(group: Any, name: str) -> Callable[[], None]:
    torch.manual_seed(0)
    model, data = MODELS[name]()
    replica = DistributedDataParallel(model, process_group=group, bucket_cap_mb=BUCKETS_MIB[name])
    optimizer = torch.optim.AdamW(replica.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with record_function("forward"):
            loss = replica(data).square().mean()
        with record_function("backward"):
            loss.backward()
        with record_function("optimizer"):
            optimizer.step()

    return step


def measure(groups: dict, name: str, steps: int) -> list[dict[str, Any]]:
    """The events of the shortest step, as the profiler exports them."""
    step = step_of(groups["lofi"], name)
    for _ in range(3):
        step()
    profiles = []
    for _ in range(steps):
        torch.distributed.barrier(group=groups["gloo"])
        with profile(activities=[ProfilerActivity.CPU]) as profiled, record_function("step"):
            step()
        (whole,) = (event for event in profiled.events() if event.name == "step")
        profiles.append((whole.time_range.elapsed_us(), profiled))
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        min(profiles, key=lambda one: one[0])[1].export_chrome_trace(file.name)
        return json.loads(Path(file.name).read_text())["traceEvents"]


def named(events: list[dict], name: str) -> list[dict]:
    found = [event for event in events if event.get("name") == name and event["ph"] == "X"]
    return sorted(found, key=lambda event: event["ts"])


def overlap(name: str, events: list[dict]) -> dict[str, Any]:
    (backward,) = named(events, "backward")
    reduced, last = named(events, COLLECTIVE), named(events, ISSUE)[-1]["ts"]
    ends = [event["ts"] + event["dur"] for event in reduced]
    hidden = [max(min(end, last) - e["ts"], 0) for e, end in zip(reduced, ends, strict=True)]
    return {
        "model": name,
        "buckets": len(reduced),
        "backward_ms": round(backward["dur"] / 1e3, 2),
        "all_reduce_ms": round(sum(event["dur"] for event in reduced) / 1e3, 2),
        "hidden_ms": round(sum(hidden) / 1e3, 2),
        "waited_ms": round(max(max(ends) - last, 0) / 1e3, 2),
    }


def write_trace(events: list[dict], path: Path) -> None:
    kept = [{key: event[key] for key in KEPT if key in event} for event in events]
    text = json.dumps({"traceEvents": kept}, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"wrote {path}: {len(kept)} events, {path.stat().st_size} bytes")


def draw_step(axes: Any, name: str, events: list[dict]) -> None:
    begin = named(events, "forward")[0]["ts"]
    last = named(events, "optimizer")[0]
    least = (last["ts"] + last["dur"] - begin) / 1e3 / 400  # that a bar can be seen

    def bars(row: int, found: list[dict], color: str, height: float) -> None:
        spans = [((e["ts"] - begin) / 1e3, max(e["dur"] / 1e3, least)) for e in found]
        axes.broken_barh(spans, (row - height / 2, height), color=color, linewidth=0)

    for part, color in PARTS.items():
        bars(1, named(events, part), color, 0.7)
    bars(1, named(events, ISSUE), "black", 0.9)
    bars(0, named(events, COLLECTIVE), "tab:red", 0.7)
    axes.set_yticks([0, 1], [COLLECTIVE, "training thread"])
    axes.set_title(name, fontsize=10, loc="left")


def draw(traces: dict[str, list[dict]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    figure, rows = pyplot.subplots(len(traces), figsize=(10, 4), layout="constrained")
    for axes, (name, events) in zip(rows, traces.items(), strict=True):
        draw_step(axes, name, events)
    rows[-1].set_xlabel("ms")
    colors = {**PARTS, "issue of an all_reduce": "black", "all_reduce of a bucket": "tab:red"}
    marks = [patches.Patch(color=color, label=label) for label, color in colors.items()]
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), fontsize=8)
    figure.savefig(path, dpi=100)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="DDP steps as torch's profiler sees them")
    parser.add_argument("--steps", type=int, default=20, help="that are profiled")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    arguments = parser.parse_args()
    traces = {}
    for name in MODELS:
        traces[name] = two_groups.run(measure, 2, name, arguments.steps)
        print(overlap(name, traces[name]))
        write_trace(traces[name], arguments.out / f"trace-{name.split()[-1]}.json.gz")
    draw(traces, arguments.out / "trace.png")


if __name__ == "__main__":
    main()
