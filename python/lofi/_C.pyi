# SPDX-License-Identifier: MIT
"""The native half of lofi: liblofi and the c10d backend."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import Store

# The build.
torch_version: str

def build_info() -> str: ...

# The log. Levels are 0 (error) to 4 (trace).
def set_log_level(word: str) -> None: ...
def log(level: int, line: str) -> None: ...
def hold_log() -> None: ...
def release_log() -> None: ...

# Nodes.
class Topology:
    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        node_size: int,
        settings: str,
        problem: str,
        timeout: timedelta,
    ) -> None: ...
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def node_size(self) -> int: ...
    @property
    def node_count(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def node(self) -> int: ...

class Group:
    def __init__(self, topology: Topology, global_ranks: Sequence[int]) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def node_count(self) -> int: ...
    @property
    def local_size(self) -> int: ...
    @property
    def is_even(self) -> bool: ...
    def global_rank(self, rank: int, /) -> int: ...
    def place(self, rank: int, /) -> int: ...
    def node_of(self, rank: int, /) -> int: ...
    def node_number(self, index: int, /) -> int: ...
    def member(self, node: int, place: int, /) -> int: ...

# The backend. torch types its own Backend loosely, and so does this.
class Options:
    def __copy__(self, *args: Any) -> Options: ...
    def __deepcopy__(self, *args: Any) -> Options: ...

class BackendLofi:
    def __init__(
        self,
        group: Group,
        source: Any,
        timeout: timedelta,
        name: str,
        strict: bool,
        coalesces_cuda: bool,
    ) -> None: ...
    @property
    def options(self) -> Any: ...
    @property
    def source(self) -> Any: ...
    def inner(self, device: str, span: str) -> Any: ...
    def release(self, device: str) -> None: ...
    def perform_nocolor_split(self, device: torch.device) -> None: ...
    # torch's Backend has these and more, which Python calls without a ProcessGroup.
    def rank(self) -> int: ...
    def size(self) -> int: ...
    def __getattr__(self, name: str) -> Any: ...

class BackendComm:
    @property
    def transport(self) -> str: ...
    def __getattr__(self, name: str) -> Any: ...

class NodeStore(Store):
    def __init__(self, below: Store) -> None: ...

def with_comm(
    gloo: Any,
    store: Store,
    global_ranks: Sequence[int],
    timeout: timedelta,
    name: str,
) -> Any: ...

# The session: phases, scopes, counts.
BY_USER: int
BY_WRAPPER: int
SCOPE_WORLD: int
SCOPE_NODE: int
EVENT_TRAIN: int
EVENT_AVERAGE: int
EVENT_AVERAGE_BACK: int
EVENT_AVERAGE_DONE: int
EVENT_EVALUATE: int
FOR_SETUP: int
FOR_AVERAGE: int
FOR_BYPASS: int

def phase() -> str: ...
def event(event: int) -> None: ...
def scope() -> int: ...
def push_scope(scope: int) -> None: ...
def pop_scope() -> None: ...
def issuer() -> int: ...
def set_issuer(issuer: int) -> int: ...
def set_purpose(purpose: int) -> int: ...
def count(scope: int, purpose: int, bytes: int) -> None: ...
def reset_session() -> None: ...
def stats() -> dict[str, Any]: ...

# Values.
CUDA_IS_BUILT: bool
CUDA_MEAN_INPUTS: int

def mean(
    out: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    base: torch.Tensor | None = None,
    alpha: float = 1.0,
    raw_weights: bool = False,
) -> None: ...
def cuda_mean(
    out: torch.Tensor, pieces: torch.Tensor, weights: Sequence[float] | None, stream: int
) -> None: ...
def digest(tensor: torch.Tensor) -> bytes: ...
def find_nonfinite(tensor: torch.Tensor) -> int: ...

# Files.
def average_files(
    inputs: Sequence[str],
    out: str,
    *,
    weights: Sequence[float] | None,
    base: str | None,
    alpha: float,
    only: str | None,
    skip: str | None,
    dtype: str | None,
    integers_first: bool,
    strip_prefixes: Sequence[str],
    force: bool,
    raw_weights: bool,
    force_config: bool,
    lora: str | None,
) -> None: ...
def find_quantised(names: Sequence[str], dtypes: Sequence[str]) -> tuple[int, int] | None: ...
def open_checkpoint(path: str) -> None: ...
def select_names(only: str | None, skip: str | None, names: Sequence[str]) -> list[bool]: ...

# The average.
def round_members(nodes: Sequence[tuple[bool, int, float]], min_nodes: int) -> list[int]: ...

EXCHANGE_GIVE: int
EXCHANGE_COMBINE: int
EXCHANGE_SHARE: int
DIFFERS_BETWEEN: int
DIFFERS_INSIDE: int

class ExchangeStep:
    @property
    def kind(self) -> int: ...
    @property
    def slot(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    @property
    def begin(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def piece_count(self) -> int: ...
    @property
    def sent_bytes(self) -> int: ...

def exchange_plan(
    count: int,
    element_bytes: int,
    nodes: int,
    local_size: int,
    slots: int,
    chunk_count: int,
    gives: bool,
) -> list[ExchangeStep]: ...
def exchange_fit(
    element_bytes: int,
    nodes: int,
    local_size: int,
    slots: int,
    scratch_bytes: int,
    pieces_beside: int,
) -> int: ...
def differences(
    digests: bytes, nodes: int, node_size: int, is_shard: Sequence[bool]
) -> list[int]: ...

# Rounds.
ROUND_ANNOUNCE: int
ROUND_COMPARE: int
ROUND_LOOK: int
ROUND_WAIT: int
ROUND_LIST: int
ROUND_CLOSE: int
ROUND_READ: int
ROUND_CLOSED: int
ROUND_NOTHING: int
ROUND_LEAST: int
ROUND_DIFFERS: int

class Round:
    def __init__(self, member_count: int, member: int, close_at: int, kind: int) -> None: ...
    @property
    def next(self) -> int: ...
    def tell(
        self,
        yes: bool = False,
        words: Sequence[str | None] | None = None,
        verdict: str | None = None,
    ) -> None: ...
    @property
    def verdict(self) -> str: ...
    @property
    def members(self) -> list[int]: ...
    @property
    def value(self) -> int: ...

def progress_is_past(progress: str, steps: int) -> bool: ...
