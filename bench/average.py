# SPDX-License-Identifier: MIT
"""The average over a real link: seconds against the link's limit and against a loop of all_reduce.

Two nodes x two ranks in network namespaces (needs root), a link of 1 Gbit/s for each node. In one
run: lofi.finalize_average of the model, then dist.all_reduce over its parameters one by one on the
same groups. The limit is the time in which the link carries 2 (K-1)/K times the model's bytes as
TCP payload (95.6 % of the rate of whole Ethernet frames). Writes bench/out/average.csv and .png.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import two_groups

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
from harness.cluster import WORKERS  # noqa: E402
from harness.cluster.netns import Cluster, requires_root_and_netns  # noqa: E402

WORKER = WORKERS / "average.py"
TCP_SHARE = 0.956


def measure(cluster: Cluster, million: float, dtype: str, mbit: float) -> dict[str, object]:
    job = cluster.start(WORKER, [million, dtype, "both"], nproc=2)
    run = job.wait(600)
    ranks = [json.loads(result.stdout.strip().splitlines()[-1]) for result in run.results]
    marks = job.marks()
    size = ranks[0]["bytes"]
    wire = max(
        marks["average ends"][node]["tx_bytes"] - marks["average begins"][node]["tx_bytes"]
        for node in (0, 1)
    )
    limit = size * 8e-6 / (mbit * TCP_SHARE)  # 2 (K-1)/K is 1
    average = max(rank["average_seconds"] for rank in ranks)
    loop = max(rank["loop_seconds"] for rank in ranks)
    return {
        "dtype": dtype,
        "million": million,
        "mbit": mbit,
        "limit_s": round(limit, 3),
        "average_s": round(average, 3),
        "average_over_limit": round(average / limit, 3),
        "loop_s": round(loop, 3),
        "loop_over_average": round(loop / average, 3),
        "payload_over_model": round(max(rank["bytes_sent"] for rank in ranks) / size, 4),
        "wire_over_model": round(wire / size, 4),
    }


def plot(rows: list[dict[str, object]], path: Path) -> None:
    kinds = [("limit_s", "limit of the link"), ("average_s", "finalize_average"),
             ("loop_s", "loop of all_reduce")]  # fmt: skip
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for offset, (key, label) in enumerate(kinds):
        for place, dtype in enumerate(dtypes):
            seconds = [row[key] for row in rows if row["dtype"] == dtype]
            axes.bar(
                place + (offset - 1) * 0.27, statistics.median(seconds), 0.25,
                color=f"C{offset}", label=label if place == 0 else None,
            )  # fmt: skip
    axes.set_xticks(range(len(dtypes)), dtypes)
    axes.set_ylabel("seconds")
    axes.set_title(
        f"{rows[0]['million']:g}M parameters, 2 nodes x 2 ranks, {rows[0]['mbit']:g} Mbit/s a link",
        fontsize=10,
    )
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--million", type=float, default=86, help="parameters (default 86: ViT-B)")
    parser.add_argument("--mbit", type=float, default=1000)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if reason := requires_root_and_netns():
        print(f"bench/average.py: skipped: {reason}")
        return
    out = HERE / "out"
    rows = []
    with Cluster(nodes=2, mbit=options.mbit) as cluster:
        for dtype in options.dtypes:
            for _ in range(options.runs):
                rows.append(measure(cluster, options.million, dtype, options.mbit))
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    two_groups.write_csv(rows, out / "average.csv")
    plot(rows, out / "average.png")
    print(f"wrote {out / 'average.png'}")


if __name__ == "__main__":
    main()
