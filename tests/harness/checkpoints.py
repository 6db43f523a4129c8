# SPDX-License-Identifier: MIT
"""safetensors files in numpy alone, and the average that lofi promises, by another way.

Floats are arrays of float64 with the name of their dtype. Rounding is by search among all numbers
of the format for 8 and 16 bits, and by numpy for float32.
"""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

from harness import truth

ROOT = Path(__file__).resolve().parents[2]
LOFI = os.environ.get("LOFI_TEST_PROGRAM", str(ROOT / "build" / "gcc" / "lofi"))

# name: (mantissa bits, exponent bias, bits, finite patterns, pattern beyond the largest)
SMALL = {
    "F16": (10, 15, 16, 0x7C00, 0x7C00),
    "BF16": (7, 127, 16, 0x7F80, 0x7F80),
    "F8_E4M3": (3, 7, 8, 0x7F, 0x7E),
    "F8_E5M2": (2, 15, 8, 0x7C, 0x7C),
}
FLOATS = ["F64", "F32", *SMALL]
NUMPY = {"F64": np.float64, "F32": np.float32, "C64": np.complex64, "BOOL": np.bool_}
NUMPY |= {f"{k}{b}": np.dtype(f"{k.lower()}{b // 8}").type for k in "IU" for b in (8, 16, 32, 64)}


def values(kind: str) -> np.ndarray:
    """The value of each pattern from 0 on, and of the one after the largest."""
    mantissa, bias, _, finite, _ = SMALL[kind]
    pattern = np.arange(finite + 1)
    exponent, fraction = pattern >> mantissa, pattern & ((1 << mantissa) - 1)
    normal = np.ldexp((fraction + (1 << mantissa)).astype(np.float64), exponent - bias - mantissa)
    small = np.ldexp(fraction.astype(np.float64), 1 - bias - mantissa)
    return np.where(exponent == 0, small, normal)


def encode(kind: str, data: np.ndarray) -> np.ndarray:
    """float64 to the bits of the dtype, rounded once to nearest even."""
    if kind not in SMALL:
        with np.errstate(over="ignore"):
            return data.astype(NUMPY[kind])
    _, _, bits, finite, beyond = SMALL[kind]
    table, absolute = values(kind), np.abs(data)
    low = np.clip(np.searchsorted(table, absolute, side="right") - 1, 0, finite - 1)
    tie = (table[low] + table[low + 1]) / 2
    up = (absolute > tie) | ((absolute == tie) & (low % 2 == 1))
    pattern = np.where(low + up >= finite, beyond, low + up)
    pattern = np.where(np.isnan(data), (1 << (bits - 1)) - 1, pattern)
    sign = np.signbit(data).astype(np.int64) << (bits - 1)
    return (pattern | sign).astype(np.uint16 if bits == 16 else np.uint8)


def decode(kind: str, raw: np.ndarray) -> np.ndarray:
    if kind not in SMALL:
        return raw.astype(np.float64)
    _, _, bits, finite, _ = SMALL[kind]
    table = values(kind)
    table[finite] = np.nan if kind == "F8_E4M3" else np.inf
    pattern = raw.astype(np.int64) & ((1 << (bits - 1)) - 1)
    absolute = np.where(pattern > finite, np.nan, table[np.minimum(pattern, finite)])
    return np.where(raw.astype(np.int64) >> (bits - 1) == 1, -absolute, absolute)


def mean(inputs, weights=None, base=None, alpha=1.0):
    """The formula of lofi.h, in float64 arrays: what has the factor 0 is not in the sum."""
    weights = [1.0] * len(inputs) if weights is None else weights
    if base is not None and alpha == 0:
        return base
    counting = [(i, w) for i, w in zip(inputs, weights, strict=True) if w != 0]
    inputs, weights = zip(*counting, strict=True)
    with np.errstate(all="ignore"):
        return truth.formula(inputs, weights, None if alpha == 1 else base, alpha)


class Tensor:
    """Bits with a dtype of the format."""

    def __init__(self, kind: str, raw: np.ndarray):
        self.kind, self.raw = kind, raw

    @classmethod
    def of(cls, kind: str, data: np.ndarray) -> "Tensor":
        return cls(kind, encode(kind, np.asarray(data, dtype=np.float64)))

    @property
    def data(self) -> np.ndarray:
        return decode(self.kind, self.raw)

    def same(self, other: "Tensor") -> bool:
        if self.kind != other.kind or self.raw.shape != other.raw.shape:
            return False
        if self.raw.tobytes() == other.raw.tobytes():
            return True
        if self.kind not in FLOATS:
            return False
        nan = np.isnan(self.data) & np.isnan(other.data)
        return bool(np.all(nan | (self.raw == other.raw)))


def write(path, tensors: dict[str, Tensor], metadata=None) -> None:
    header = {} if metadata is None else {"__metadata__": metadata}
    begin, data = 0, []
    for name, tensor in tensors.items():
        raw = tensor.raw.tobytes()
        header[name] = {
            "dtype": tensor.kind,
            "shape": list(tensor.raw.shape),
            "data_offsets": [begin, begin + len(raw)],
        }
        begin += len(raw)
        data.append(raw)
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def write_shards(folder, shards: list[dict[str, Tensor]], metadata=None) -> None:
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    places = {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write(folder / name, shard, metadata)
        places |= dict.fromkeys(shard, name)
    total = sum(t.raw.nbytes for s in shards for t in s.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def header_of(path) -> dict:
    content = Path(path).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def read(path) -> dict[str, Tensor]:
    """All tensors of a file, or of a folder with an index."""
    path = Path(path)
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        names = {"model.safetensors"}
        if index.exists():
            names = set(json.loads(index.read_text())["weight_map"].values())
        return {k: v for name in sorted(names) for k, v in read(path / name).items()}
    content, header = path.read_bytes(), header_of(path)
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        kind = entry["dtype"]
        bits = SMALL[kind][2] if kind in SMALL else 0
        dtype = {16: np.uint16, 8: np.uint8}.get(bits) or NUMPY[kind]
        begin, end = entry["data_offsets"]
        raw = np.frombuffer(content[start + begin : start + end], dtype=dtype)
        tensors[name] = Tensor(kind, raw.reshape(entry["shape"]))
    return tensors


def lofi(*arguments, check=True, code=0, **keywords) -> subprocess.CompletedProcess:
    """`code` 3: the average is written, and has numbers that are not finite or did not fit."""
    done = subprocess.run(
        [LOFI, *map(str, arguments)], capture_output=True, text=True, timeout=120, **keywords
    )
    if check:
        assert done.returncode == code, done.stderr
    return done


def peak_kilobytes(*arguments) -> int:
    """The resident memory that the program took at most. (Without that of what starts it.)"""
    script = (
        "import os, resource, sys\n"
        "code = os.spawnv(os.P_WAIT, sys.argv[1], sys.argv[1:])\n"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    command = [sys.executable, "-c", script, LOFI, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    code, kilobytes = map(int, done.stdout.split())
    assert code == 0, done.stderr
    return kilobytes
