# SPDX-License-Identifier: MIT
"""Fine-tune a small vision transformer with DDP and with lo-fi, and compare the two.

The same script, finetune.py, runs twice per seed: over four ranks as plain DDP, and as two lo-fi
nodes of two ranks. Then the pre-trained model, the two results, each node's own model and the
ensemble of the nodes are tested on clean digits and on three shifted test sets.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor
    from tqdm import tqdm

HERE = Path(__file__).resolve().parent
NODES = 2
RANKS_PER_NODE = 2
RANKS = NODES * RANKS_PER_NODE
PACKAGES = ("torch", "timm", "sklearn", "scipy", "matplotlib", "tqdm", "numpy")

PRETRAINED, DDP, LOFI, NODE, ENSEMBLE = ROWS = (
    "pre-trained model",
    "DDP over all ranks",
    "lo-fi",
    "each node alone",
    "ensemble of the nodes",
)
TESTS = ("test", "noise", "rotation", "thinner")
TITLES = {"test": "clean", "noise": "noise", "rotation": "rotation", "thinner": "thinner strokes"}
NOTES = f"""\
Accuracy in %, mean ± standard deviation over the seeds. Bytes are what one node sends to the
other. DDP's are computed: steps × bytes of gradients × 2(K−1)/K for K = {NODES} nodes, the least
that a ring all-reduce sends; lo-fi's are its own count. Seconds are those of the training loop,
with all ranks on this one machine. The ensemble averages the logits of the nodes' models and
costs {NODES} models at each inference."""


class DemoError(Exception):
    """What went wrong, as a sentence for the user."""


@dataclass
class Result:
    """What was measured of one row with one seed; None where there is nothing to measure."""

    accuracy: dict[str, float] = field(default_factory=dict)  # test set -> per cent
    training_bytes: float | None = None
    end_bytes: float | None = None
    seconds: float | None = None


def check_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        requirements = os.path.relpath(HERE / "requirements.txt")
        raise DemoError(
            f"This demo needs {', '.join(missing)}. "
            f"Run: {sys.executable} -m pip install torch -r {requirements}"
        )
    if importlib.util.find_spec("lofi") is None:
        root = os.path.relpath(HERE.parent.parent)
        raise DemoError(f"lofi is not installed. Run: {sys.executable} -m pip install {root}")


# Training


def finetune_command(out: Path, seed: int, launcher: list[str]) -> list[str]:
    """torchrun [-m lofi] finetune.py ..."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(RANKS), *launcher, str(HERE / "finetune.py")]
    command += ["--data", str(out / "digits.npz"), "--pretrained", str(out / "pretrained.pth")]
    command += ["--seed", str(seed), "--save-every-rank"]
    return command


def run_finetune(command: list[str], environment: dict[str, str], folder: Path, bar: tqdm) -> None:
    """Run one torchrun, move the bar with its epochs, and keep its output in log.txt."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines: list[str] = []
    process = subprocess.Popen(
        [*command, "--out", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        with open(folder / "log.txt", "w") as log:
            for line in process.stdout:
                log.write(line)
                lines.append(line)
                advance(bar, line)
        status = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if status != 0:
        raise DemoError(
            f"torchrun ended with status {status}. Its last lines "
            f"(all of them are in {os.path.relpath(folder / 'log.txt')}):\n{last_lines(lines)}"
        )


def last_lines(lines: list[str], count: int = 20) -> str:
    """The last lines that the script wrote; torchrun's own report of the failure follows them."""
    report = (n for n, line in enumerate(lines) if "torch/distributed/elastic" in line)
    end = next(report, len(lines))
    return "".join(lines[max(0, end - count) : end] or lines[-count:])


def advance(bar: tqdm, line: str) -> None:
    """Read "epoch 3/15 ..." off the script's output and move the bar by one epoch."""
    match = re.search(r"epoch (\d+)/(\d+)", line)
    if match:
        bar.update(1 / int(match[2]))


def train_all(out: Path, seeds: list[int]) -> None:
    """All runs, one after another, into out/seed<s>-ddp and out/seed<s>-lofi."""
    from tqdm import tqdm

    layout = "{desc} {percentage:3.0f} %|{bar}| {elapsed}"
    with tqdm(total=2 * len(seeds), bar_format=layout, dynamic_ncols=True) as bar:
        for seed in seeds:
            folder = out / f"seed{seed}-ddp"
            bar.set_description(f"seed {seed}, DDP, {RANKS} ranks in one group")
            run_finetune(finetune_command(out, seed, []), {}, folder, bar)

            folder = out / f"seed{seed}-lofi"
            bar.set_description(f"seed {seed}, lo-fi, {NODES} nodes x {RANKS_PER_NODE} ranks")
            environment = {
                "LOFI_NODE_SIZE": str(RANKS_PER_NODE),
                "LOFI_EVAL": "node",  # nothing crosses nodes before the end
                "LOFI_STATS": str(folder / "stats"),
            }
            run_finetune(finetune_command(out, seed, ["-m", "lofi"]), environment, folder, bar)


# Reading what the runs left behind


def load(path: Path) -> dict:
    import torch

    if not path.exists():
        raise DemoError(f"The run was to write {os.path.relpath(path)}, but it is not there.")
    return torch.load(path, weights_only=True)


def node_weights(folder: Path) -> list[dict]:
    """The weights of each node before averaging, as its first rank saved them."""
    return [load(folder / f"rank{node * RANKS_PER_NODE}.pth")["model"] for node in range(NODES)]


def check_average(average: dict, nodes: list[dict]) -> None:
    """The lo-fi checkpoint has to be the mean of the nodes, and the nodes have to differ."""
    for name, tensor in average.items():
        expected = sum(weights[name].double() for weights in nodes) / len(nodes)
        if not tensor.equal(expected.to(tensor.dtype)):
            raise DemoError(f"The lo-fi checkpoint is not the mean of the nodes at {name}.")
    if all(nodes[0][name].equal(nodes[1][name]) for name in average):
        raise DemoError("The nodes ended with the same weights: they did not train apart.")


def lofi_bytes(folder: Path) -> tuple[float, float]:
    """Bytes per node sent to other nodes, by lofi's own count: while training, and at the end.

    Training includes everything between set-up and the final average. The placing of DDP's
    starting weights is left out, here and for plain DDP.
    """
    training = end = 0
    for rank in range(RANKS):
        path = folder / f"stats.rank{rank}.json"
        if not path.exists():
            raise DemoError(f"lofi left no statistics in {os.path.relpath(path)}.")
        sent = json.loads(path.read_text())["cross_bytes"]
        training += sent["training"] + sent["evaluation"] + sent["bypass"]
        end += sent["average"] + sent["done"]
    return training / NODES, end / NODES


def ddp_bytes(checkpoint: dict) -> float:
    """Bytes per node that the gradients' all-reduce has to send to other nodes, computed."""
    from vit import create_model

    gradient = sum(p.numel() * p.element_size() for p in create_model().parameters())
    return checkpoint["steps"] * gradient * 2 * (NODES - 1) / NODES


# Testing


def logits(weights: dict, data: Path) -> dict[str, Tensor]:
    """The model's outputs on each test set."""
    import torch
    from vit import create_model, load_part

    model = create_model()
    model.load_state_dict(weights)
    model.eval()
    with torch.no_grad():
        return {part: model(load_part(str(data), part)[0]) for part in TESTS}


def accuracy(outputs: dict[str, Tensor], data: Path) -> dict[str, float]:
    """Accuracy of such outputs in per cent, on each test set."""
    from vit import load_part

    result = {}
    for part, output in outputs.items():
        labels = load_part(str(data), part)[1]
        result[part] = 100 * (output.argmax(1) == labels).float().mean().item()
    return result


def mean_by_test(values: list[dict]) -> dict:
    """The mean over models, by test set, of outputs or of accuracies."""
    return {part: sum(each[part] for each in values) / len(values) for part in TESTS}


def results_of_seed(out: Path, seed: int) -> dict[str, Result]:
    data = out / "digits.npz"
    ddp = load(out / f"seed{seed}-ddp" / "checkpoint.pth")
    folder = out / f"seed{seed}-lofi"
    lofi = load(folder / "checkpoint.lofi.pth")
    nodes = node_weights(folder)
    check_average(lofi["model"], nodes)
    training, end = lofi_bytes(folder)

    outputs = [logits(weights, data) for weights in nodes]
    node_accuracy = mean_by_test([accuracy(each, data) for each in outputs])
    ensemble_accuracy = accuracy(mean_by_test(outputs), data)
    ddp_accuracy = accuracy(logits(ddp["model"], data), data)
    lofi_accuracy = accuracy(logits(lofi["model"], data), data)
    return {
        DDP: Result(ddp_accuracy, ddp_bytes(ddp), 0.0, ddp["seconds"]),
        LOFI: Result(lofi_accuracy, training, end, lofi["seconds"]),
        NODE: Result(node_accuracy, training, 0.0, lofi["seconds"]),
        ENSEMBLE: Result(ensemble_accuracy, training, 0.0, lofi["seconds"]),
    }


def all_results(out: Path, seeds: list[int]) -> list[dict[str, Result]]:
    """For each seed, the results by row; the pre-trained model is the same in all."""
    from tqdm import tqdm

    weights = load(out / "pretrained.pth")["model"]
    data = out / "digits.npz"
    pretrained = Result(accuracy(logits(weights, data), data))
    progress = tqdm(seeds, desc="testing", unit="seed")
    return [{PRETRAINED: pretrained, **results_of_seed(out, seed)} for seed in progress]


# Reporting


def spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def format_accuracy(values: list[float], row: str) -> str:
    if row == PRETRAINED or len(values) == 1:  # one model, whatever the seed
        return f"{mean(values):.1f}"
    return f"{mean(values):.1f} ± {spread(values):.1f}"


def format_bytes(values: list[float | None]) -> str:
    if None in values:
        return "–"
    count = mean(values)
    if count == 0:
        return "0"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def format_seconds(values: list[float | None]) -> str:
    return "–" if None in values else f"{mean(values):.1f}"


def table(results: list[dict[str, Result]]) -> str:
    """A Markdown table, its columns padded so that it reads well in a terminal too."""
    header = ["", *TITLES.values(), "bytes while training", "bytes at the end", "seconds"]
    lines = [header]
    for row in ROWS:
        runs = [result[row] for result in results]
        cells = [format_accuracy([run.accuracy[part] for run in runs], row) for part in TESTS]
        cells.append(format_bytes([run.training_bytes for run in runs]))
        cells.append(format_bytes([run.end_bytes for run in runs]))
        cells.append(format_seconds([run.seconds for run in runs]))
        lines.append([row, *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = [
        [line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
        for line in lines
    ]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def write_csv(path: Path, results: list[dict[str, Result]], seeds: list[int]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        columns = [f"{TITLES[part].replace(' ', '_')}_accuracy" for part in TESTS]
        writer.writerow(["row", "seed", *columns, "training_bytes", "end_bytes", "seconds"])
        for seed, result in zip(seeds, results, strict=True):
            for row in ROWS:
                run = result[row]
                cells = [f"{run.accuracy[part]:.3f}" for part in TESTS]
                counts = [run.training_bytes, run.end_bytes]
                cells += ["" if count is None else f"{count:.0f}" for count in counts]
                cells.append("" if run.seconds is None else f"{run.seconds:.2f}")
                writer.writerow([row, seed, *cells])


COLORS = {
    PRETRAINED: "#c9ccd1",
    DDP: "#4c78a8",
    LOFI: "#f28e2b",
    NODE: "#fbd0a2",
    ENSEMBLE: "#8f6bb1",
}


def plot(path: Path, results: list[dict[str, Result]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 5), width_ratios=(3.4, 1), layout="constrained"
    )
    plot_accuracy(left, results)
    plot_bytes(right, results)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_accuracy(axes: Axes, results: list[dict[str, Result]]) -> None:
    width = 0.165
    for index, row in enumerate(ROWS):
        values = [[result[row].accuracy[part] for result in results] for part in TESTS]
        places = [group + (index - (len(ROWS) - 1) / 2) * width for group in range(len(TESTS))]
        heights = [mean(each) for each in values]
        errors = [spread(each) for each in values] if row != PRETRAINED else None
        axes.bar(
            places, heights, 0.92 * width, yerr=errors, color=COLORS[row], label=row,
            error_kw={"elinewidth": 1.2, "capsize": 2.5, "ecolor": "#333333"},
        )  # fmt: skip
        for place, height, each in zip(places, heights, values, strict=True):
            above = height + (spread(each) if errors else 0) + 0.6
            axes.text(place, above, f"{height:.1f}", ha="center", va="bottom", fontsize=8.5)
    axes.set_xticks(range(len(TESTS)), [TITLES[part] for part in TESTS])
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 104)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy on the test set, %")
    axes.set_title(f"Accuracy, mean and standard deviation over {len(results)} seeds", loc="left")
    axes.legend(ncols=len(ROWS), loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False,
                columnspacing=1.2, handlelength=1.2)  # fmt: skip


def plot_bytes(axes: Axes, results: list[dict[str, Result]]) -> None:
    """Bytes between nodes: DDP while training, lo-fi while training and at the end."""
    bars = {
        "DDP,\ntraining": (DDP, [result[DDP].training_bytes for result in results]),
        "lo-fi,\ntraining": (LOFI, [result[LOFI].training_bytes for result in results]),
        "lo-fi,\nthe end": (LOFI, [result[LOFI].end_bytes for result in results]),
    }
    for place, (row, counts) in enumerate(bars.values()):
        axes.bar(place, mean(counts) / 1e6, 0.6, color=COLORS[row])
        axes.annotate(
            format_bytes(counts), (place, mean(counts) / 1e6), (0, 3),
            textcoords="offset points", ha="center", va="bottom",
        )  # fmt: skip
    axes.set_xticks(range(len(bars)), list(bars))
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("MB per node")
    axes.margins(y=0.08)
    axes.set_title("Sent between nodes", loc="left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder for the results")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error("--seeds has to be at least 1")
    check_packages()

    import torch
    from digits import prepare
    from pretrain import pretrain

    torch.set_num_threads(1)  # more only wait for each other with a model this small
    out, seeds = args.out.resolve(), list(range(args.seeds))
    prepare(out / "digits.npz")
    pretrain(out / "digits.npz", out / "pretrained.pth")
    start = time.perf_counter()
    train_all(out, seeds)
    results = all_results(out, seeds)
    report = f"{table(results)}\n\n{NOTES}\n"
    (out / "table.md").write_text(report)
    write_csv(out / "results.csv", results, seeds)
    plot(out / "demo.png", results)
    print(f"\n{report}")
    files = ", ".join(os.path.relpath(out / n) for n in ("table.md", "results.csv", "demo.png"))
    print(f"{time.perf_counter() - start:.0f} seconds after set-up. Written: {files}")


if __name__ == "__main__":
    try:
        main()
    except DemoError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: interrupted")
