# SPDX-License-Identifier: MIT
"""One node is gloo, and so is world scope: the same bits and the same refusals, call by call.

Data are compared in one job, on a lofi group and a gloo group of the same ranks. What belongs to a
whole job (errors, time-outs, works, meshes) is run twice, under each backend, and compared.

Through shared memory sums are taken in rank order. Of two ranks that makes no difference; of more
the data are such that no order rounds, so that the bits are compared all the same. With LOFI_SHM=0
they are any data. What shared memory does and gloo does not: PREMUL_SUM, and to leave the tensors
of a reduce alone outside of its root.
"""

import inspect
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import collectives
from harness.collectives import Call, Feed, Outcome, frozen, outcome, quiet
from harness.ranks import run_ranks

DATA_DTYPES = {
    2: (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64),
    3: (torch.float32, torch.int64),
    4: (torch.float32, torch.bfloat16),
}


@dataclass
class Pair:
    """A lofi group and a gloo group of the same members, in the same order."""

    name: str
    lofi: Any
    gloo: Any

    @property
    def is_mine(self) -> bool:
        return self.lofi != dist.GroupMember.NON_GROUP_MEMBER and self.lofi is not None


class Comparison:
    """Runs calls on both groups of a pair; collects where they differ and what was accepted."""

    def __init__(self) -> None:
        self.shm = os.environ.get("LOFI_SHM") != "0"
        self.differences: list[str] = []
        self.accepted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def run(self, pair: Pair, name: str, function: Any, **how: Any) -> None:
        feed = Feed(dist.get_rank(), exact=self.shm and dist.get_world_size(pair.gloo) > 2)
        with quiet():
            expected, got = (
                outcome(function, Call(group, feed, **how)) for group in (pair.gloo, pair.lofi)
            )
        (self.refused if expected.error else self.accepted)[name] += 1
        if expected.error and not got.error and _is_more_than_gloo(how):
            return  # test_drop_in.py and test_shm.py compare it with its definition
        if got != expected and not (
            self.shm and _is_better(name, Call(pair.lofi, feed, **how), got)
        ):
            self.differences.append(f"{pair.name} {name} {how}: {got}, gloo: {expected}")

    def report(self) -> tuple[list[str], Counter[str], Counter[str]]:
        return self.differences[:10], self.accepted, self.refused


def _is_more_than_gloo(how: dict[str, Any]) -> bool:
    """What lofi takes as NCCL does: PREMUL_SUM, floats of 8 bits, complex numbers in every move."""
    dtype = how.get("dtype", torch.float32)
    is_a_float8 = dtype.is_floating_point and dtype.itemsize == 1
    return how.get("op") == "PREMUL_SUM" or is_a_float8 or dtype.is_complex


def _is_better(name: str, call: Call, got: Outcome) -> bool:
    """Where shared memory does more than gloo, which leaves partial sums outside of the root."""
    return name == "reduce" and not call.is_root and got.value == frozen([call.input(6)])


def _world_pair() -> Pair:
    return Pair("world", dist.group.WORLD, dist.new_group(backend="gloo"))


def _sub_pair(ranks: list[int]) -> Pair:
    keeps_order = "sort_ranks" in inspect.signature(dist.new_group).parameters
    how = {"sort_ranks": False} if keeps_order else {}
    groups = [dist.new_group(ranks, backend=name, **how) for name in ("lofi", "gloo")]
    return Pair(str(ranks), *groups)


def _split_pair() -> Pair:
    halves = [[0, 1], [2, 3]]
    mine = halves[dist.get_rank() // 2]
    split = dist.split_group(split_ranks=halves)
    assert dist.get_process_group_ranks(split) == mine
    made = [dist.new_group(half, backend="gloo") for half in halves]
    return Pair("split", split, made[dist.get_rank() // 2])


def _pairs(size: int) -> list[Pair]:
    subsets = {2: [[1, 0], [1]], 3: [[0, 2], [2, 0, 1]], 4: [[0, 2], [3, 1], [3, 0, 2]]}[size]
    pairs = [_world_pair(), *(_sub_pair(ranks) for ranks in subsets)]
    return pairs + ([_split_pair()] if size == 4 else [])


def _join() -> None:
    dist.init_process_group("lofi")
    assert dist.get_backend() == "lofi"


def _check(results: list[Any], expected: Any, *, refuses: bool) -> None:
    """No rank saw a difference, every function worked at least once, and refusals were compared."""
    for differences, accepted, refused in results:
        assert not differences, "\n".join(differences)
        assert set(accepted) == set(expected)
        assert bool(refused) == refuses


def _reductions() -> Any:
    """Every reduction x dtype x operation x async on the whole node."""
    _join()
    pair, comparison = _world_pair(), Comparison()
    for name, function in collectives.REDUCTIONS.items():
        for number, dtype in enumerate(collectives.DTYPES):
            for op in collectives.ops_of(dtype):
                for async_op in (False, True):
                    comparison.run(
                        pair,
                        name,
                        function,
                        dtype=dtype,
                        op=op,
                        async_op=async_op,
                        root=number % dist.get_world_size(),
                    )
    return comparison.report()


@pytest.mark.parametrize("shm", ["1", "0"])
def test_reductions_of_two_ranks(shm):
    results = run_ranks(_reductions, 2, env={"LOFI_SHM": shm})
    _check(results, collectives.REDUCTIONS, refuses=True)


GROUP_FUNCTIONS = (
    collectives.REDUCTIONS
    | collectives.MOVES
    | collectives.OBJECTS
    | collectives.BARRIERS
    | collectives.FUNCTIONAL
    | collectives.table(collectives.sparse_all_reduce)
)


def _groups(size: int) -> Any:
    """Every collective on the world and on sub-groups; reductions with each operation."""
    _join()
    comparison = Comparison()
    for pair in _pairs(size):
        if not pair.is_mine:
            continue
        members = dist.get_world_size(pair.gloo)
        functions = GROUP_FUNCTIONS | (collectives.POINT_TO_POINT if members > 1 else {})
        for number, (name, function) in enumerate(functions.items()):
            for dtype in DATA_DTYPES[size]:
                how = {"dtype": dtype, "root": number % members}
                comparison.run(pair, name, function, **how)
                comparison.run(pair, name, function, async_op=True, **how)
        for op in collectives.OPS:
            for name, function in collectives.REDUCTIONS.items():
                comparison.run(pair, name, function, op=op, dtype=torch.float32)
                if op in collectives.ops_of(torch.int32):
                    comparison.run(pair, name, function, op=op, dtype=torch.int32, async_op=True)
    return comparison.report()


@pytest.mark.parametrize("size, shm", [(2, "1"), (3, "1"), (4, "1"), (4, "0")])
def test_groups_inside_one_node(size, shm):
    functions = GROUP_FUNCTIONS | collectives.POINT_TO_POINT
    results = run_ranks(_groups, size, size, env={"LOFI_SHM": shm})
    _check(results, functions, refuses=True)


def _moves_of_every_dtype() -> Any:
    _join()
    pair, comparison = _world_pair(), Comparison()
    functions = collectives.MOVES | collectives.POINT_TO_POINT
    for dtype in (*collectives.DTYPES, torch.uint16, torch.float8_e4m3fn):
        for name, function in functions.items():
            comparison.run(pair, name, function, dtype=dtype)
            comparison.run(pair, name, function, dtype=dtype, async_op=True, root=1)
    return comparison.report()


def test_moves_of_every_dtype():
    functions = collectives.MOVES | collectives.POINT_TO_POINT
    _check(run_ranks(_moves_of_every_dtype, 2), functions, refuses=True)


def _world_scope_at_setup() -> Any:
    """Two nodes that have not begun to train: real collectives."""
    import lofi

    _join()
    comparison = Comparison()
    for pair in (_world_pair(), _sub_pair([3, 1]), _sub_pair([0, 1, 2])):
        if not pair.is_mine:
            continue
        functions = GROUP_FUNCTIONS | collectives.POINT_TO_POINT
        for name, function in functions.items():
            for dtype in (torch.float32, torch.bfloat16):
                comparison.run(pair, name, function, dtype=dtype)
                comparison.run(pair, name, function, dtype=dtype, async_op=True, root=1)
        for name, function in collectives.REDUCTIONS.items():
            for op in collectives.OPS:
                comparison.run(pair, name, function, op=op, dtype=torch.float32, async_op=True)
    stats = lofi.stats()
    assert stats["phase"] == "setup" and stats["nodes"] == 2, stats
    return comparison.report()


@pytest.mark.quick
def test_world_scope_at_setup():
    results = run_ranks(_world_scope_at_setup, 4, env={"LOFI_NODE_SIZE": "2", "LOFI_LOG": "error"})
    _check(results, GROUP_FUNCTIONS | collectives.POINT_TO_POINT, refuses=True)
