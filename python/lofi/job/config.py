# SPDX-License-Identifier: MIT
"""Settings: environment variables, and `lofi.configure` with arguments of the same meaning."""

import difflib
import os
from typing import Any

from lofi.features import FEATURES, Setting

PREFIX = "LOFI_"
# These variables are no settings of a job: the path of statistics, the launcher's word to the
# processes that a script starts, and variables of the tests.
OTHER_VARIABLES = ("LOFI_STATS", "LOFI_LAUNCHED", "LOFI_TEST_")
# Later releases have these settings. They are refused here, because nothing would act on them.
PLANNED = {
    "LOFI_DIR": {""},
    "LOFI_NODES": {""},
    "LOFI_NODE": {""},
    "LOFI_MIN_NODES": {""},
}


# Every job has these; features bring their own (see lofi.features).
_OF_JOBS = (
    Setting("node_size", 0, "count"),  # ranks in a node; 0: as the launcher or the hosts say
    Setting("strict", False, "flag", is_shared=True),  # refuse what would cross nodes unasked
    # Places of the script that see their node as the world while nodes train apart.
    Setting("node_calls", "", "text", is_shared=True),
    # Inside a machine, tensors on the CPU go through shared memory, not gloo.
    Setting("shm", True, "flag", is_shared=True),
    Setting("timeout", 1800.0, "seconds"),  # that nodes wait for each other
    Setting("log", "warn", ("error", "warn", "info", "debug", "trace")),
)
SETTINGS = {
    setting.name: setting
    for setting in (*_OF_JOBS, *(s for feature in FEATURES for s in feature.settings))
}


class Settings:
    """One attribute for each setting: its value, or its default."""

    def __init__(self, **values: Any) -> None:
        self._values = {name: setting.default for name, setting in SETTINGS.items()} | values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"lofi has no setting {name!r}; it has {sorted(SETTINGS)}")
        return self._values[name]

    def shared(self) -> str:
        """The settings that all ranks must share, as one text, which they compare at start."""
        return " ".join(
            f"{PREFIX}{name.upper()}={self._values[name]}"
            for name, setting in SETTINGS.items()
            if setting.is_shared
        )


def _count(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"{name} is {text!r}, not a positive whole number")
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


def _text(name: str, text: str) -> str:
    return text


_PARSERS = {"count": _count, "flag": _flag, "seconds": _seconds, "text": _text}


def _parse(setting: Setting, name: str, text: str) -> Any:
    """The value that a text means; ValueError says what `name` may be."""
    if isinstance(setting.kind, str):
        return _PARSERS[setting.kind](name, text)
    if text not in setting.kind:
        raise ValueError(f"{name} is {text!r}; use one of {', '.join(setting.kind)}")
    return text


_overrides: dict[str, Any] = {}


def configure(**settings: object) -> None:
    """Set what the variables LOFI_* set, from Python, before the process group is made.

    `lofi.configure(node_size=2)` is `LOFI_NODE_SIZE=2`, and takes precedence over it; so it is for
    every setting that the README lists. Every rank must give the same values. ValueError names a
    wrong value; TypeError an unknown name.
    """
    checked = {}
    for name, value in settings.items():
        if name not in SETTINGS:
            raise TypeError(f"lofi.configure has no setting {name!r}; it has {sorted(SETTINGS)}")
        text = str(int(value)) if isinstance(value, bool) else str(value)
        checked[name] = _parse(SETTINGS[name], f"lofi.configure({name}=)", text)
    _overrides.update(checked)


def read() -> Settings:
    """The settings in force. ValueError names the variable that is wrong."""
    _refuse_planned()
    values = {}
    for name, setting in SETTINGS.items():
        variable = PREFIX + name.upper()
        text = os.environ.get(variable, "")
        # liblofi reads LOFI_NODE_SIZE itself, so that C programs mean the same by it.
        if text and name != "node_size":
            values[name] = _parse(setting, variable, text)
    return Settings(**{**values, **_overrides})


def _refuse_planned() -> None:
    for variable, accepted in PLANNED.items():
        value = os.environ.get(variable, "")
        if value not in accepted:
            raise ValueError(
                f"{variable}={value} is not available in this release of lofi: unset it"
            )


def unknown_variables() -> list[str]:
    """One sentence for each LOFI_ variable that nobody reads: most often a misspelt name."""
    known = [PREFIX + name.upper() for name in SETTINGS] + list(PLANNED)
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
