# SPDX-License-Identifier: MIT
"""Settings: environment variables, and `lofi.configure` with arguments of the same meaning."""

import difflib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

PREFIX = "LOFI_"
# Not settings of a run: where statistics go, what the launcher tells its children, the tests' own.
OTHER_VARIABLES = ("LOFI_STATS", "LOFI_LAUNCHED", "LOFI_TEST_")
# Settings of later releases. Set, they would promise what does not happen.
PLANNED = {
    "LOFI_DIR": {""},
    "LOFI_NODES": {""},
    "LOFI_NODE": {""},
    "LOFI_MIN_NODES": {""},
}


_SHARED = ("strict", "shm", "save", "eval", "on_sigterm")  # must be the same on every rank


@dataclass(frozen=True)
class Settings:
    """One value for each variable LOFI_<NAME>."""

    node_size: int = 0  # ranks in a node; 0: as the launcher or the hosts say
    strict: bool = False  # refuse what would cross nodes unasked
    shm: bool = True  # inside a machine, tensors on the CPU go through shared memory, not gloo
    timeout: float = 1800.0  # seconds that nodes wait for each other
    save: str = "beside"  # what the launcher does with the script's last checkpoints
    eval: str = "averaged"  # what a script evaluates under the launcher: the average, or its node
    on_sigterm: str = "exit"  # or "average": what the launcher does when the job is told to end
    log: str = "warn"

    def shared(self) -> str:
        """What must be the same on every rank, for comparison at start."""
        values = asdict(self)
        return " ".join(f"LOFI_{name.upper()}={values[name]}" for name in _SHARED)


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"{name} is {text!r}, not a positive whole number of ranks")
    return int(text)


def _flag(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(f"{name} is {text!r}; use 0 or 1")
    return text == "1"


def _seconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1e9:
        raise ValueError(f"{name} is {text!r}, not a positive number of seconds")
    return value


def _choice(*allowed: str) -> Callable[[str, str], str]:
    def parse(name: str, text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{name} is {text!r}; use one of {', '.join(allowed)}")
        return text

    return parse


_PARSERS = {
    "node_size": _whole,
    "strict": _flag,
    "shm": _flag,
    "timeout": _seconds,
    "save": _choice("beside", "inplace", "off"),
    "eval": _choice("averaged", "node"),
    "on_sigterm": _choice("exit", "average"),
    "log": _choice("error", "warn", "info", "debug", "trace"),
}
_overrides: dict[str, object] = {}


def configure(**settings: object) -> None:
    """Set what the variables LOFI_* set, from Python, before the process group is made.

    `lofi.configure(node_size=2)` is `LOFI_NODE_SIZE=2`, and takes precedence over it; so do
    `strict`, `shm`, `timeout` (seconds), `save`, `eval`, `on_sigterm` and `log`. Every rank must
    give the same values. ValueError names a wrong value; TypeError an unknown name.
    """
    known = {field.name for field in fields(Settings)}
    checked = {}
    for name, value in settings.items():
        if name not in known:
            raise TypeError(f"lofi.configure has no setting {name!r}; it has {sorted(known)}")
        text = str(int(value)) if isinstance(value, bool) else str(value)
        checked[name] = _PARSERS[name](f"lofi.configure({name}=)", text)
    _overrides.update(checked)


def read() -> Settings:
    """The settings in force. ValueError names the variable that is wrong."""
    _refuse_planned()
    values: dict[str, Any] = {}
    for field in fields(Settings):
        variable = PREFIX + field.name.upper()
        text = os.environ.get(variable, "")
        # liblofi reads LOFI_NODE_SIZE itself, so that C programs mean the same by it.
        if text and field.name != "node_size":
            values[field.name] = _PARSERS[field.name](variable, text)
    return replace(Settings(), **{**values, **_overrides})


def _refuse_planned() -> None:
    for variable, accepted in PLANNED.items():
        value = os.environ.get(variable, "")
        if value not in accepted:
            raise ValueError(
                f"{variable}={value} is not available in this release of lofi: unset it"
            )


def unknown_variables() -> list[str]:
    """One sentence for each LOFI_ variable that nobody reads: most often a misspelt name."""
    known = [PREFIX + field.name.upper() for field in fields(Settings)] + list(PLANNED)
    sentences = []
    for variable in sorted(os.environ):
        if not variable.startswith(PREFIX) or variable in known:
            continue
        if variable.startswith(OTHER_VARIABLES):
            continue
        close = difflib.get_close_matches(variable, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        sentences.append(f"{variable} is not a setting of lofi and is ignored{hint}")
    return sentences
