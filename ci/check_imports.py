#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Python's imports point one way.    check_imports.py [folder of the package]

Read from the source, also those within functions: the packages of python/lofi import only what lies
below them in LAYERS, no modules import each other in a circle, no chain of imports is longer than
FLOORS, and only its own package imports a feature's module: all others find it in the table.
"""

import ast
import sys
from functools import cache
from pathlib import Path

LAYERS = ("job", "rounds", "groups", "models", "average", "files", "hooks", "launch")
BELOW_ALL = ("features", "plot", "program", "_version", "_C")
FLOORS = 9

HERE = Path(__file__).resolve()
ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "python" / "lofi")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def package(module: str) -> str:
    return module.split(".")[0]


def names_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        # "from a import b" is of module a.b if there is one, else of a.
        return [
            deeper
            if deeper.removeprefix("lofi.") in MODULES or node.module == "lofi"
            else node.module
            for deeper in (f"{node.module}.{alias.name}" for alias in node.names)
        ]
    return []


def is_for_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def walk(node: ast.AST):
    for child in ast.iter_child_nodes(node):
        if not is_for_checkers(child):
            yield child
            yield from walk(child)


@cache
def imports(module: str) -> tuple[str, ...]:
    tree = ast.parse(MODULES[module].read_text())
    found = {name for node in walk(tree) for name in names_of(node)}
    inside = {name.removeprefix("lofi.") for name in found if name.startswith("lofi.")}
    return tuple(sorted(name for name in inside if name in MODULES))


def circles() -> list[str]:
    wrong, done = [], set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            wrong.append("a circle: " + " -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for other in imports(module):
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())
    return wrong


@cache
def tower(module: str) -> tuple[str, ...]:
    """The longest chain of imports from a module down."""
    below = max((tower(other) for other in imports(module)), key=len, default=())
    return (module, *below)


def arrows(features: dict[str, str]) -> list[str]:
    wrong = []
    for module in MODULES:
        for other in imports(module):
            a, b = package(module), package(other)
            arrow = f"{module} -> {other}"
            if b in BELOW_ALL or a == b or module in ("", "__main__", "__init__"):
                continue
            if a not in LAYERS and a not in features:
                wrong.append(f"{arrow}: {a} is no layer; put it into LAYERS of {HERE.name}")
            elif other in features:
                wrong.append(f"{arrow}: a feature is reached by the table and by events only")
            elif a in LAYERS and (b not in LAYERS or LAYERS.index(a) < LAYERS.index(b)):
                wrong.append(f"{arrow}: points upwards ({' < '.join(LAYERS)})")
    return wrong


def feature_modules() -> dict[str, str]:
    """The modules in the table, by the first argument of each Feature."""
    tree = ast.parse(MODULES["features"].read_text())
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    names = [
        call.args[0].value
        for call in calls
        if getattr(call.func, "id", "") == "Feature" and isinstance(call.args[0], ast.Constant)
    ]
    return {name: package(name) for name in names}


def main() -> int:
    features = feature_modules()
    wrong = [
        f"the table names {name}, which is no module" for name in features if name not in MODULES
    ]
    wrong += circles()
    if not wrong:
        wrong += arrows(features)
        tallest = max((tower(module) for module in MODULES), key=len)
        if len(tallest) > FLOORS:
            wrong.append(f"{len(tallest)} floors, at most {FLOORS}: " + " -> ".join(tallest))
    for sentence in wrong:
        print(f"python/lofi: {sentence}", file=sys.stderr)
    if not wrong:
        print(f"{len(MODULES)} Python modules import one way, on {len(tallest)} floors")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
