# SPDX-License-Identifier: MIT
"""All-reduce inside a machine: lofi's shared memory against gloo, OpenMPI and memcpy.

    python bench/all_reduce.py [--ranks 2 4] [--seconds 1.0] [--out bench/out]

gloo and lofi live in the same processes and reduce the same tensors, through dist.all_reduce, and
so does liblofi's C API, called by ctypes: what torch costs on top of it. Rounds on one and on the
others alternate; a round's figure is its mean per call, the table has medians and the ratio of
medians. memcpy: libc's, by the first rank, of the largest size, while the others sleep; bandwidth
is bytes of the tensor over seconds, for both. Torch runs on one thread.
MPI_Allreduce and the C API alternate in processes of their own, of all_reduce_mpi.c, where there
is an mpicc (Debian: openmpi-bin, libopenmpi-dev).
Writes all_reduce.csv, all_reduce_mpi.csv and all_reduce.png.
"""

import argparse
import ctypes
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import liblofi
import torch
import torch.distributed as dist
import two_groups

SIZES = [4 << (2 * i) for i in range(13)] + [25 << 20, 86 << 20, 344 << 20, 512 << 20]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOST_ROUNDS, LEAST_ROUNDS = 40, 5
ROUND_SECONDS = 0.1  # of the slowest one
MPI_PROGRAM = liblofi.LIBRARY.with_name("all_reduce_mpi")


Reduce = Callable[[torch.Tensor], Any]


def seconds_of_calls(tensor: torch.Tensor, reduce: Reduce, group: Any, calls: int) -> float:
    dist.barrier(group=group)
    begin = time.perf_counter()
    for _ in range(calls):
        reduce(tensor)
    return (time.perf_counter() - begin) / calls


def agreed(value: float, group: Any) -> float:
    """The first rank's, on every rank: all must make as many rounds."""
    box = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(box, 0, group=group)
    return box.item()


def measure_size(
    reduces: dict[str, Reduce], group: Any, size: int, dtype: torch.dtype, budget: float
) -> dict[str, float]:
    tensor = torch.zeros(max(size // dtype.itemsize, 1), dtype=dtype)
    once = max(
        agreed(min(seconds_of_calls(tensor, reduce, group, 2) for _ in range(2)), group)
        for reduce in reduces.values()
    )
    # As many in a row on one group as on the other.
    calls = max(1, min(200, int(ROUND_SECONDS / once)))
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(budget / (once * calls))))
    times: dict[str, list[float]] = {kind: [] for kind in reduces}
    for number in range(rounds):
        kinds = list(reduces) if number % 2 else list(reduces)[::-1]
        for kind in kinds:
            times[kind].append(seconds_of_calls(tensor, reduces[kind], group, calls))
    return {kind: statistics.median(values) for kind, values in times.items()}


def memcpy_bandwidth(group: Any, size: int) -> float:
    """Bytes per second of one core, the median of several."""
    bandwidth = 0.0
    if dist.get_rank() == 0:
        source, target = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            ctypes.memmove(target.data_ptr(), source.data_ptr(), size)
            times.append(time.perf_counter() - begin)
        bandwidth = size / statistics.median(times)
    dist.barrier(group=group)
    return bandwidth


def measure(groups: dict, sizes: list[int], dtypes: list[str], budget: float) -> list[dict]:
    rows = []
    communicator = liblofi.Communicator()
    reduces: dict[str, Reduce] = {
        kind: lambda tensor, group=group: dist.all_reduce(tensor, group=group)
        for kind, group in groups.items()
    }
    reduces["c"] = communicator.all_reduce
    for dtype in dtypes:
        for size in sizes:
            copied = memcpy_bandwidth(groups["gloo"], max(sizes)) if size >= 1 << 22 else None
            took = measure_size(reduces, groups["lofi"], size, DTYPES[dtype], budget)
            row = {
                "ranks": dist.get_world_size(),
                "dtype": dtype,
                "bytes": size,
                "gloo_us": round(took["gloo"] * 1e6, 2),
                "lofi_us": round(took["lofi"] * 1e6, 2),
                "c_us": round(took["c"] * 1e6, 2),
                "gloo_over_lofi": round(took["gloo"] / took["lofi"], 2),
                "lofi_over_c": round(took["lofi"] / took["c"], 3),
                "lofi_GB_s": round(size / took["lofi"] * 1e-9, 3),
                "memcpy_GB_s": round(copied * 1e-9, 2) if copied else "",
                "lofi_over_memcpy": round(size / took["lofi"] / copied, 3) if copied else "",
            }
            rows.append(row)
            if dist.get_rank() == 0:
                print("  ".join(f"{value!s:>9}" for value in row.values()), flush=True)
    communicator.destroy()
    return rows


def measure_mpi(ranks: int, sizes: list[int], budget: float) -> list[dict]:
    """MPI_Allreduce and lofi_all_reduce of float32 in one program of C."""
    if shutil.which("mpicc") is None:
        print("no mpicc: OpenMPI is not measured (Debian: openmpi-bin, libopenmpi-dev)")
        return []
    source, program = Path(__file__).with_suffix("").with_name("all_reduce_mpi.c"), MPI_PROGRAM
    where = liblofi.LIBRARY.parent
    link = [f"-I{liblofi.ROOT / 'c_api'}", f"-L{where}", f"-Wl,-rpath,{where}", "-llofi"]
    subprocess.run(["mpicc", "-O2", str(source), "-o", str(program), *link], check=True)
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), str(program)]
    command += [str(budget), *map(str, sizes)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = []
    for line in printed.splitlines():
        size, mpi, lofi = line.split()
        row = {"ranks": ranks, "bytes": int(size), "mpi_us": float(mpi), "lofi_us": float(lofi)}
        rows.append({**row, "mpi_over_lofi": round(float(mpi) / float(lofi), 2)})
        print("  ".join(f"{value!s:>9}" for value in rows[-1].values()), flush=True)
    return rows


def draw(rows: list[dict], mpi_rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (latency, ratio) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for ranks, dtype in sorted({(row["ranks"], row["dtype"]) for row in rows}):
        mine = [row for row in rows if (row["ranks"], row["dtype"]) == (ranks, dtype)]
        sizes = [row["bytes"] for row in mine]
        label = f"{ranks} ranks, {dtype}"
        (line,) = latency.plot(sizes, [row["lofi_us"] for row in mine], marker=".", label=label)
        latency.plot(
            sizes, [row["gloo_us"] for row in mine], "--", color=line.get_color(), linewidth=1
        )
        ratio.plot(sizes, [row["gloo_over_lofi"] for row in mine], marker=".", label=label)
    for ranks in sorted({row["ranks"] for row in mpi_rows}):
        mine = [row for row in mpi_rows if row["ranks"] == ranks]
        sizes, times = ([row[key] for row in mine] for key in ("bytes", "mpi_over_lofi"))
        ratio.plot(sizes, times, ":", marker="x", label=f"{ranks} ranks, OpenMPI over C API")
    limits = [row for row in rows if row["memcpy_GB_s"]]
    latency.plot(
        [row["bytes"] for row in limits],
        [row["bytes"] / row["memcpy_GB_s"] * 1e-3 for row in limits],
        ".", color="black", markersize=3, label="memcpy of one core",
    )  # fmt: skip
    latency.set_ylabel("µs per all_reduce (solid: lofi, dashed: gloo)")
    ratio.set_ylabel("times as fast as gloo (crosses: as OpenMPI)")
    ratio.axhline(1, color="grey", linewidth=0.8)
    for axes in (latency, ratio):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("bytes")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle("all_reduce among the ranks of one machine")
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="all_reduce: shared memory, gloo, OpenMPI, memcpy")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="BYTES")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=1.0, help="for one size and group")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    arguments = parser.parse_args()
    rows, mpi_rows = [], []
    for ranks in arguments.ranks:
        print("ranks, bytes, us MPI, us lofi (C API), MPI/lofi")
        mpi_rows += measure_mpi(ranks, arguments.sizes, arguments.seconds)
        print("ranks, dtype, bytes, us gloo, us lofi, us C API, gloo/lofi, lofi/C, GB/s, ...")
        rows += two_groups.run(measure, ranks, arguments.sizes, arguments.dtypes, arguments.seconds)
    two_groups.write_csv(rows, arguments.out / "all_reduce.csv")
    if mpi_rows:
        two_groups.write_csv(mpi_rows, arguments.out / "all_reduce_mpi.csv")
    draw(rows, mpi_rows, arguments.out / "all_reduce.png")


if __name__ == "__main__":
    main()
