# SPDX-License-Identifier: MIT
"""The program lofi (average, soup, info, diff), which is installed with this package, by its side.

    python -m lofi average run1/ run2/ -o average/

runs it where its folder is not on PATH. It is a program of C: nothing here imports torch. Its
`soup` gets one more option here, --plot FILE.png, since Python draws that.
"""

import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

COMMANDS = ("average", "soup", "info", "diff")
_DISTRIBUTION = "torch-lofi"


def is_asked_for(arguments: list[str]) -> bool:
    """Whether these arguments of `python -m lofi` are the program's; all others name a script."""
    return bool(arguments) and arguments[0] in COMMANDS


def is_starting() -> bool:
    """Whether Python imports the package on its way to `python -m lofi average` and the like."""
    if sys.argv[:1] != ["-m"] or not is_asked_for(sys.argv[1:]):
        return False
    # Python also takes the module in one word with its options: -mlofi, -umlofi.
    word = sys.orig_argv[-len(sys.argv) :][0]
    return word == "lofi" or (word.startswith("-") and word.partition("m")[2] == "lofi")


def find() -> str | None:
    """The program that was installed with this package; else one that is on PATH."""
    for path in _candidates():
        if path.is_file() and os.access(path, os.X_OK):
            return str(path.resolve())
    return shutil.which("lofi")


def _candidates() -> Iterator[Path]:
    # A build leaves metadata beside the sources, too, which may come first and name no program.
    for installed in metadata.distributions(name=_DISTRIBUTION):
        for file in installed.files or []:
            if file.name == "lofi":
                yield Path(str(file.locate()))
    # pip install --target moves the program here, and its list of files still has the old place.
    yield Path(__file__).resolve().parents[1] / "bin" / "lofi"


def run(arguments: list[str]) -> None:
    """Become the program. Returns never."""
    program = find()
    if program is None:
        sys.exit(
            f"lofi: the program for `{arguments[0]}` is not found: it comes with this package when "
            "pip installs it (pip install --no-build-isolation .), and with cmake --install; its "
            "folder has to be on PATH"
        )
    plot, rest = _take_option("--plot", arguments)
    if arguments[0] == "soup" and plot is not None:
        sys.exit(_run_and_plot(program, rest, plot))
    os.execv(program, ["lofi", *arguments])


def _take_option(name: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of an option, if it is there, and the other arguments."""
    for index, word in enumerate(arguments):
        if word == "--":
            break
        if word == name and index + 1 < len(arguments):
            return arguments[index + 1], arguments[:index] + arguments[index + 2 :]
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}="), arguments[:index] + arguments[index + 1 :]
    return None, arguments


def _run_and_plot(program: str, arguments: list[str], path: str) -> int:
    from lofi import plot

    plot.check(path)
    with tempfile.TemporaryDirectory(prefix="lofi-") as folder:
        table, _ = _take_option("--csv", arguments)
        if table is None:
            table = os.path.join(folder, "steps.csv")
            arguments = ["soup", "--csv", table, *arguments[1:]]
        code = _run_in_group(program, arguments)
        if code == 0 and os.path.exists(table):  # there is none after --help
            with open(table, newline="") as file:
                plot.draw(csv.DictReader(file), path)
    return code


def _run_in_group(program: str, arguments: list[str]) -> int:
    """Run it in a process group of its own, which a terminal's Ctrl-C does not reach: it comes by
    way of here, once. A second one would end the program before it has cleaned up."""
    with subprocess.Popen(["lofi", *arguments], executable=program, process_group=0) as running:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: running.send_signal(number))
        code = running.wait()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if code < 0:
        os.kill(os.getpid(), -code)
    return code
