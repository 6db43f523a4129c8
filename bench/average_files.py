# SPDX-License-Identifier: MIT
"""Checkpoints averaged: `lofi average` against mergekit and a loop of torch over safetensors.

    python bench/average_files.py [--folder DIR] [--mergekit PATH] [--large] [--out bench/out]

Generates 4 checkpoints of 0.95 GB in bfloat16 and 8 of 265 MB in float32, in Llama's shape, and
has each tool average them in turn, files in the page cache. Seconds are those of the whole command;
start_seconds are what it takes to do nothing (mergekit --help, import torch), and the last ratio is
without them on the others' side. Memory is the peak resident set of the process. memcpy: of two
threads at once, in the same run. --large: two sparse inputs of 16 GB, for the memory. Needs the
program lofi. mergekit (`mergekit-yaml` on the PATH, or --mergekit) is left out if it is missing.
Writes average_files.csv.
"""

import argparse
import ctypes
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import two_groups
from safetensors.torch import save_file

LOOP = """
import sys, torch
from safetensors import safe_open
from safetensors.torch import save_file
if len(sys.argv) > 1:
    files = [safe_open(path + "/model.safetensors", "pt") for path in sys.argv[2:]]
    mean = {}
    for name in files[0].keys():
        total = files[0].get_tensor(name).float()
        for file in files[1:]:
            total += file.get_tensor(name)
        mean[name] = (total / len(files)).to(files[0].get_tensor(name).dtype)
    save_file(mean, sys.argv[1] + "/model.safetensors", {"format": "pt"})
"""


@dataclass(frozen=True)
class Set:
    name: str
    count: int
    dtype: torch.dtype
    hidden: int
    layers: int
    heads: int


SETS = (
    Set("4 x 0.95 GB bf16", 4, torch.bfloat16, 1536, 10, 12),
    Set("8 x 265 MB fp32", 8, torch.float32, 512, 8, 8),
)
VOCABULARY, WIDER = 32000, 4


def shapes_of(one: Set) -> dict[str, tuple[int, ...]]:
    hidden, inner = one.hidden, one.hidden * WIDER
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for layer in range(one.layers):
        at = f"model.layers.{layer}."
        for name in "qkvo":
            shapes[f"{at}self_attn.{name}_proj.weight"] = (hidden, hidden)
        for name in ("gate", "up"):
            shapes[f"{at}mlp.{name}_proj.weight"] = (inner, hidden)
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{at}input_layernorm.weight"] = (hidden,)
        shapes[f"{at}post_attention_layernorm.weight"] = (hidden,)
    return {**shapes, "model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)}


def config_of(one: Set) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": one.hidden,
        "num_hidden_layers": one.layers, "num_attention_heads": one.heads,
        "num_key_value_heads": one.heads, "intermediate_size": one.hidden * WIDER,
        "vocab_size": VOCABULARY, "torch_dtype": str(one.dtype).removeprefix("torch."),
        "tie_word_embeddings": False,
    }  # fmt: skip


def generate(folder: Path, one: Set) -> list[Path]:
    paths = []
    for number in range(one.count):
        path = folder / f"{one.hidden}-{number}"
        path.mkdir()
        generator = torch.Generator().manual_seed(number)
        tensors = {
            name: torch.randn(shape, generator=generator).to(one.dtype)
            for name, shape in shapes_of(one).items()
        }
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        (path / "config.json").write_text(json.dumps(config_of(one)))
        paths.append(path)
    return paths


@dataclass
class Took:
    seconds: float
    peak_mb: float


# A process of its own, because a child's peak begins with what its parent holds when it forks.
MEASURE = """
import json, os, sys, time
begin = time.perf_counter()
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
code = os.waitstatus_to_exitcode(status)
print(json.dumps([code, time.perf_counter() - begin, usage.ru_maxrss / 1000]), file=sys.stderr)
"""


def run(command: list[str]) -> Took:
    environment = os.environ | {"OMP_NUM_THREADS": "2", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", MEASURE, *command], env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True,
    )  # fmt: skip
    code, seconds, peak_mb = json.loads(done.stderr.strip().splitlines()[-1])
    if code != 0:
        raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")
    return Took(seconds, peak_mb)


def memcpy_of_two(bytes_each: int = 1 << 29) -> float:
    """Bytes per second that two threads copy together, the median of several."""
    buffers = [torch.zeros(bytes_each, dtype=torch.uint8) for _ in range(4)]

    def copy(number: int) -> None:
        ctypes.memmove(buffers[number].data_ptr(), buffers[number + 2].data_ptr(), bytes_each)

    rates = []
    for _ in range(7):
        threads = [threading.Thread(target=copy, args=(number,)) for number in (0, 1)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates.append(2 * bytes_each / (time.perf_counter() - begin))
    return statistics.median(rates)


def into_page_cache(paths: list[Path]) -> int:
    total = 0
    for path in paths:
        with (path / "model.safetensors").open("rb") as file:
            while block := file.read(1 << 24):
                total += len(block)
    return total


def mergekit_config(folder: Path, paths: list[Path], one: Set) -> Path:
    dtype = str(one.dtype).removeprefix("torch.")
    lines = ["merge_method: linear", f"dtype: {dtype}", "models:"]
    for path in paths:
        lines += [f"  - model: {path}", "    parameters:", "      weight: 1.0"]
    config = folder / f"{one.hidden}.yaml"
    config.write_text("\n".join(lines) + "\n")
    return config


def measure(folder: Path, one: Set, tools: dict[str, str], rounds: int) -> list[dict]:
    paths = generate(folder, one)
    config = mergekit_config(folder, paths, one)
    out = folder / "out"

    def command(tool: str) -> list[str]:
        inputs = [str(path) for path in paths]
        if tool == "lofi":
            return [tools[tool], "average", *inputs, "-o", str(out), "--quiet"]
        if tool == "mergekit":
            return [tools[tool], str(config), str(out), "--no-copy-tokenizer"]
        return [sys.executable, "-c", LOOP, str(out), *inputs]

    starts = {"lofi": 0.0, "torch loop": run([sys.executable, "-c", LOOP]).seconds}
    if "mergekit" in tools:
        starts["mergekit"] = run([tools["mergekit"], "--help"]).seconds
    took: dict[str, list[Took]] = {tool: [] for tool in tools}
    copied = []
    for _ in range(rounds):
        total = into_page_cache(paths)
        copied.append(memcpy_of_two())
        for tool in tools:
            shutil.rmtree(out, ignore_errors=True)
            if tool == "torch loop":
                out.mkdir()
            took[tool].append(run(command(tool)))
    bandwidth = statistics.median(copied)
    rows = []
    lofi = statistics.median(one.seconds for one in took["lofi"])
    for tool in tools:
        seconds = statistics.median(one.seconds for one in took[tool])
        rows.append(
            {
                "set": one.name,
                "tool": tool,
                "seconds": round(seconds, 3),
                "start_seconds": round(starts[tool], 3),
                "over_lofi": round(seconds / lofi, 2),
                "without_start_over_lofi": round((seconds - starts[tool]) / lofi, 2),
                "input_GB_s": round(total / seconds * 1e-9, 2),
                "memcpy_of_two_GB_s": round(bandwidth * 1e-9, 2),
                "input_over_memcpy": round(total / seconds / bandwidth, 3),
                "peak_MB": round(max(one.peak_mb for one in took[tool])),
            }
        )
        print("  ".join(f"{value!s:>18}" for value in rows[-1].values()), flush=True)
    for path in [*paths, out]:
        shutil.rmtree(path)
    return rows


def measure_large(folder: Path, lofi: str) -> dict:
    """Two sparse files of 16 GB in 8 tensors: how much memory it takes."""
    each = 1 << 30  # elements of bf16 in a tensor
    entries = {
        f"t{number}": {
            "dtype": "BF16",
            "shape": [each],
            "data_offsets": [2 * each * number, 2 * each * (number + 1)],
        }
        for number in range(8)
    }
    header = json.dumps(entries).encode()
    paths = [folder / f"large{number}.safetensors" for number in (0, 1)]
    for path in paths:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + 16 * each)
    out = folder / "large.safetensors"
    took = run([lofi, "average", *map(str, paths), "-o", str(out), "--quiet"])
    print(f"2 x 16 GB, sparse: {took.seconds:.1f} s, peak {took.peak_mb:.0f} MB")
    for path in [*paths, out]:
        path.unlink()
    return {"set": "2 x 16 GB sparse", "tool": "lofi", "seconds": round(took.seconds, 1),
            "peak_MB": round(took.peak_mb)}  # fmt: skip


def main() -> None:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="averages of checkpoints: lofi, mergekit, torch")
    parser.add_argument("--folder", type=Path, help="for the checkpoints; default: a temporary one")
    parser.add_argument("--lofi", default=shutil.which("lofi") or here.parent / "build/gcc/lofi")
    parser.add_argument("--mergekit", default=shutil.which("mergekit-yaml"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--out", type=Path, default=here / "out")
    arguments = parser.parse_args()
    tools = {"lofi": str(arguments.lofi)}
    if arguments.mergekit:
        tools["mergekit"] = arguments.mergekit
    else:
        print("mergekit is not installed: left out")
    tools["torch loop"] = ""
    rows: list[dict] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for one in SETS:
            rows += measure(Path(folder), one, tools, arguments.rounds)
        if arguments.large:
            rows.append(
                {**dict.fromkeys(rows[0], ""), **measure_large(Path(folder), tools["lofi"])}
            )
    two_groups.write_csv(rows, arguments.out / "average_files.csv")


if __name__ == "__main__":
    main()
