#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Includes and calls of C and C++ point one way.    check_layers.py [folder of a build]

The folders of c_api include only headers of their own and of folders below them in LAYERS, and
know nothing of their callers; backend/ and the program know lofi.h alone. With
the folder of a build, the same is asked of the symbols in its object files; there, no two files may
need each other, by whatever way round.
"""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

# A folder uses those before it. cli is above lofi.h, which all may include.
LAYERS = (
    *("core", "kernels", "cuda", "nodes", "mirror"),
    *("transport", "comm", "average", "ckpt", "merge"),
)
FOREIGN = re.compile(r"^(torch|ATen|c10|pybind11|Python|backend)\b|backend/")

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.M)


def sources(folder: str) -> list[Path]:
    kinds = (".c", ".h", ".cu", ".cpp", ".hpp")
    return [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in kinds]


def refuse_includes() -> list[str]:
    found = []
    for path in sources("c_api") + sources("backend"):
        where = path.relative_to(ROOT)
        folder = where.parts[1] if where.parts[0] == "c_api" and len(where.parts) > 2 else ""
        for name in INCLUDE.findall(path.read_text()):
            if where.parts[0] == "c_api" and FOREIGN.search(name):
                found.append(f"{where} includes {name}: liblofi does not know its callers")
            other = name.removeprefix("../").removeprefix("c_api/").split("/")[0]
            if "/" not in name or other not in LAYERS:
                continue
            if folder not in LAYERS:
                found.append(f"{where} includes {name}: of liblofi it may use lofi.h only")
            elif LAYERS.index(other) > LAYERS.index(folder):
                found.append(f"{where} includes {name}: {other} lies above {folder}")
    return found


def read_symbols(build: Path) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Which file of c_api defines each symbol, and what each file needs."""
    defined: dict[str, str] = {}
    needed: dict[str, set[str]] = defaultdict(set)
    for path in sorted(build.glob("CMakeFiles/lofi_*.dir/c_api/**/*.o")):
        name = str(path.relative_to(build)).split("/c_api/")[1].removesuffix(".o")
        if not (ROOT / "c_api" / name).exists():  # left from an older build
            continue
        text = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
        for kind, symbol in re.findall(r"\b([A-Za-z]) (\w+)$", text, re.M):
            if kind == "U":
                needed[name].add(symbol)
            elif kind.isupper():
                defined[symbol] = name
    return defined, needed


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The files that reach themselves, and how."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
            return
        if name in done:
            return
        for other in sorted(graph[name]):
            walk(other, [*path, name])
        done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


def refuse_symbols(build: Path) -> list[str]:
    defined, needed = read_symbols(build)
    if not defined:
        return [f"{build} holds no object files of liblofi: build it first"]
    found = []
    graph: dict[str, set[str]] = {name: set() for name in set(defined.values()) | set(needed)}
    for name, symbols in sorted(needed.items()):
        folder = name.split("/")[0]
        for symbol in sorted(symbols & set(defined)):
            other = defined[symbol]
            if other == name:
                continue
            graph[name].add(other)
            above = other.split("/")[0]
            if folder == "cli":
                if above != "cli" and symbol.startswith("lofi__"):
                    found.append(f"{name} needs {symbol}: the program uses lofi.h only")
            elif LAYERS.index(above) > LAYERS.index(folder):
                found.append(f"{name} needs {symbol} of {other}: {above} lies above {folder}")
    found += ["files need each other: " + " -> ".join(circle) for circle in circles(graph)]
    print(f"{len(graph)} object files, {sum(map(len, graph.values()))} arrows between them")
    return found


def main() -> int:
    found = refuse_includes()
    unknown = {p.name for p in (ROOT / "c_api").iterdir() if p.is_dir()} - {*LAYERS, "lofi", "cli"}
    found += [f"c_api/{name} has no place in LAYERS of {Path(__file__).name}" for name in unknown]
    for build in sys.argv[1:]:
        found += refuse_symbols(Path(build))
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        print(
            "C: includes and calls point one way" if sys.argv[1:] else "C: includes point one way"
        )
    return 1 if found else 0


sys.exit(main())
