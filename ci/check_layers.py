#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Includes and calls of C and C++ point one way.    check_layers.py [folder of a build]

LAYERS is the one list of folders: each may include headers of its own and of those before it, and
no two files may include each other, by whatever way round. backend/ and the program c_api/cli lie
above all of them and know lofi.h alone. With the folder of a build, the same is asked of the
symbols in its object files, which also finds a call of a function that was declared by hand.
"""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

# lofi is lofi.h and the headers by subject that it includes; all may use them.
LAYERS = (
    *("lofi", "core", "kernels", "cuda", "nodes", "mirror"),
    *("transport", "comm", "average", "ckpt", "lora", "merge"),
)
ABOVE = ("cli", "backend")
FOREIGN = re.compile(r"^(torch|ATen|c10|pybind11|Python)\b")

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.M)


def sources() -> list[Path]:
    kinds = (".c", ".h", ".cu", ".cpp", ".hpp")
    paths = [*(ROOT / "c_api").rglob("*"), *(ROOT / "backend").rglob("*")]
    return sorted(path for path in paths if path.suffix in kinds)


def folder_of(path: Path) -> str:
    """The layer of a file: of c_api/lofi.h, lofi."""
    parts = path.relative_to(ROOT).parts
    return Path(parts[1]).stem if parts[0] == "c_api" else parts[0]


def may_use(user: str, used: str) -> bool:
    if user in ABOVE or used not in LAYERS:
        return used in (user, LAYERS[0])
    return used in LAYERS[: LAYERS.index(user) + 1]


def reason(user: str, used: str) -> str:
    return f"{user} may use lofi.h only" if user in ABOVE else f"{used} lies above {user}"


def refuse_unknown() -> list[str]:
    folders = {folder_of(path) for path in sources()} - {*LAYERS, *ABOVE}
    return [f"c_api/{name} has no place in LAYERS of {Path(__file__).name}" for name in folders]


def find_include(path: Path, name: str) -> Path | None:
    """The file of this project that an include means; None: it is of no file here."""
    for folder in (path.parent, ROOT / "c_api", ROOT / "backend"):
        found = (folder / name).resolve()
        if found.is_file() and found.is_relative_to(ROOT):
            return found
    return None


def refuse_includes() -> list[str]:
    found = []
    graph: dict[str, set[str]] = defaultdict(set)
    for path in sources():
        user, where = folder_of(path), str(path.relative_to(ROOT))
        for name in INCLUDE.findall(path.read_text()):
            other = find_include(path, name)
            if other is not None:
                graph[where].add(str(other.relative_to(ROOT)))
                used = folder_of(other)
                if not may_use(user, used):
                    found.append(f"{where} includes {name}: {reason(user, used)}")
            elif user != "backend" and FOREIGN.search(name):
                found.append(f"{where} includes {name}: liblofi does not know its callers")
    return found + refuse_circles(graph)


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


def refuse_symbols(build: Path) -> list[str]:
    defined, needed = read_symbols(build)
    if not defined:
        return [f"{build} holds no object files of liblofi: build it first"]
    found = []
    graph: dict[str, set[str]] = defaultdict(set)
    for name, symbols in sorted(needed.items()):
        user = name.split("/")[0]
        for symbol in sorted(symbols & set(defined)):
            other = defined[symbol]
            graph[name].add(other)
            used = other.split("/")[0]
            if user in ABOVE and used in LAYERS and not symbol.startswith("lofi__"):
                used = LAYERS[0]
            if not may_use(user, used):
                found.append(f"{name} needs {symbol} of {other}: {reason(user, used)}")
    print(f"{len(needed)} object files, {sum(map(len, graph.values()))} arrows between them")
    return found + refuse_circles(graph)


def refuse_circles(graph: dict[str, set[str]]) -> list[str]:
    """The files that reach themselves, and how."""
    found: list[str] = []
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            circle = [*path[path.index(name) :], name]
            found.append("files need each other: " + " -> ".join(circle))
            return
        if name in done:
            return
        for other in sorted(graph.get(name, ())):
            walk(other, [*path, name])
        done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


def main() -> int:
    found = refuse_unknown()
    if not found:
        found = refuse_includes()
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
