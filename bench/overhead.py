# SPDX-License-Identifier: MIT
"""What the plug-in costs per collective: lofi over gloo against gloo, in one node of two ranks.

With LOFI_SHM=0, so that both move their bytes alike (all_reduce.py compares with shared memory).

    python bench/overhead.py [--rounds 200] [--out bench/out]

Both groups live in the same two processes and connect the same ranks. Short rounds of calls on one
and on the other alternate, and which goes first alternates too, so that whatever else the machine
does falls on both alike. A round's figure is its mean per call; the table has the median over
rounds, with the quartiles, of the time and of the difference from gloo in the same round. A third
group, a second one of gloo, is compared with the first in the same way: that is the noise.

Time is measured twice: by the clock, which holds the wait for the other rank and, on a busy
machine, for a core; and as the CPU time of the calling thread, in which lofi does all its work: the
difference in it is the overhead even where that of the clock is lost in noise.
Writes overhead.csv and overhead.png.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import two_groups

KINDS = ("gloo", "lofi", "gloo again")


@dataclass(frozen=True)
class Case:
    name: str
    elements: int  # of float32
    calls: int  # in a round


CASES = (
    Case("all_reduce", 1, 20),
    Case("all_reduce", 1 << 10, 20),
    Case("all_reduce", 1 << 18, 5),
    Case("all_reduce async", 1, 20),
    Case("broadcast", 1, 20),
    Case("all_gather", 1, 20),
    Case("all_gather_into_tensor", 1, 20),
    Case("barrier", 0, 20),
)


@dataclass
class Buffers:
    """Tensors of one case, the same ones for every group: where they lie must not matter."""

    tensor: torch.Tensor
    parts: list[torch.Tensor]
    whole: torch.Tensor


def buffers_of(case: Case) -> Buffers:
    size = dist.get_world_size()
    parts = [torch.zeros(case.elements) for _ in range(size)]
    return Buffers(torch.zeros(case.elements), parts, torch.zeros(case.elements * size))


def call_of(case: Case, at: Buffers, group: Any) -> Callable[[], Any]:
    calls: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(at.tensor, group=group),
        "all_reduce async": lambda: dist.all_reduce(at.tensor, group=group, async_op=True).wait(),
        "broadcast": lambda: dist.broadcast(at.tensor, 0, group=group),
        "all_gather": lambda: dist.all_gather(at.parts, at.tensor, group=group),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(
            at.whole, at.tensor, group=group
        ),
        "barrier": lambda: dist.barrier(group=group),
    }
    return calls[case.name]


@dataclass
class Times:
    """Microseconds per call, by round, of one group."""

    clock: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def one_round(call: Callable[[], Any], calls: int, times: Times) -> None:
    clock, cpu = time.perf_counter(), time.thread_time()
    for _ in range(calls):
        call()
    clock, cpu = time.perf_counter() - clock, time.thread_time() - cpu
    times.clock.append(clock / calls * 1e6)
    times.cpu.append(cpu / calls * 1e6)


def measure(case: Case, groups: dict[str, Any], meeting: Any, rounds: int) -> dict[str, Times]:
    """`meeting`: a group of its own, for a barrier on one that is measured would warm it."""
    buffers = buffers_of(case)
    calls = {kind: call_of(case, buffers, group) for kind, group in groups.items()}
    for call in calls.values():
        for _ in range(20):
            call()
    times = {kind: Times() for kind in groups}
    for number in range(rounds):
        turn = number % len(KINDS)
        for kind in KINDS[turn:] + KINDS[:turn]:
            dist.barrier(group=meeting)
            one_round(calls[kind], case.calls, times[kind])
    return times


def measure_all(groups: dict[str, Any], rounds: int) -> list[tuple[Case, dict[str, Times]]]:
    groups = {**groups, "gloo again": dist.new_group(backend="gloo")}
    meeting = dist.new_group(backend="gloo")
    return [(case, measure(case, groups, meeting, rounds)) for case in CASES]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def row_of(case: Case, times: dict[str, Times]) -> dict[str, Any]:
    row: dict[str, Any] = {"collective": case.name, "bytes": case.elements * 4}

    def put(name: str, values: list[float]) -> None:
        row[f"{name}_low"], row[f"{name}_us"], row[f"{name}_high"] = quartiles(values)

    for clock in ("clock", "cpu"):
        values = {kind: getattr(times[kind], clock) for kind in KINDS}
        for kind in ("gloo", "lofi"):
            put(f"{kind}_{clock}", values[kind])
        for name, kind in (("overhead", "lofi"), ("noise", "gloo again")):
            pairs = zip(values[kind], values["gloo"], strict=True)
            put(f"{name}_{clock}", [a - b for a, b in pairs])
        row[f"ratio_{clock}"] = row[f"lofi_{clock}_us"] / row[f"gloo_{clock}_us"]
    return row


TITLES = {"clock": "by the clock", "cpu": "CPU time of the calling thread"}


def print_table(rows: list[dict[str, Any]]) -> None:
    for clock, title in TITLES.items():
        print(f"{title}: microseconds per call, median [quartiles]")
        print(f"{'collective':24}{'bytes':>9}{'gloo':>22}{'lofi':>22}{'ratio':>7}", end="")
        print(f"{'lofi - gloo':>26}{'gloo - gloo':>26}")
        for row in rows:
            print(f"{row['collective']:24}{row['bytes']:>9}", end="")
            print(
                "".join(f"{spread(row, f'{kind}_{clock}'):>22}" for kind in ("gloo", "lofi")),
                end="",
            )
            print(f"{row[f'ratio_{clock}']:7.3f}", end="")
            for name in ("overhead", "noise"):
                print(f"{spread(row, f'{name}_{clock}', '+'):>26}", end="")
            print()


def spread(row: dict[str, Any], name: str, sign: str = "") -> str:
    middle, low, high = (row[f"{name}_{part}"] for part in ("us", "low", "high"))
    return f"{middle:{sign}.1f} [{low:{sign}.0f}, {high:{sign}.0f}]"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no matplotlib: no picture", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, (clock, title) in zip(both, TITLES.items(), strict=True):
        for shift, name, label in (
            (-0.15, f"overhead_{clock}", "lofi - gloo"),
            (0.15, f"noise_{clock}", "gloo - gloo: noise"),
        ):
            middle = [row[f"{name}_us"] for row in rows]
            below = [row[f"{name}_us"] - row[f"{name}_low"] for row in rows]
            above = [row[f"{name}_high"] - row[f"{name}_us"] for row in rows]
            places = [place + shift for place in range(len(rows))]
            axes.errorbar(places, middle, [below, above], fmt="o", capsize=4, label=label)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.axhline(10, color="grey", linewidth=0.8, linestyle="--", label="aim: below 10 µs")
        labels = [f"{row['collective']}\n{row['bytes']} B" for row in rows]
        axes.set_xticks(range(len(rows)), labels, fontsize=7, rotation=45)
        axes.set_title(title, fontsize=10)
    both[0].set_ylabel("µs per call: median and quartiles")
    both[0].legend(fontsize=8)
    figure.suptitle("Overhead of the plug-in over gloo, one node of two ranks")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="overhead of lofi per collective over gloo")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    arguments = parser.parse_args()
    os.environ["LOFI_SHM"] = "0"
    measured = two_groups.run(measure_all, 2, arguments.rounds)
    rows = [row_of(case, times) for case, times in measured]
    print_table(rows)
    two_groups.write_csv(rows, arguments.out / "overhead.csv")
    draw(rows, arguments.out / "overhead.png")


if __name__ == "__main__":
    main()
