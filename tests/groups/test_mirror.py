# SPDX-License-Identifier: MIT
"""Mirrored collectives by their data: while nodes train apart, every other node is a mirror image.

The truth comes from gloo. A collective of node k must return what the real one would if each rank
held the data of its image in node k; so for each node in turn a gloo group of all the same ranks
runs it, fed with those data, and the ranks of node k keep the result. Data are small whole numbers:
no order of a sum rounds, and results must be equal to the bit.
"""

import os
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import collectives
from harness.collectives import (
    PREMUL_DTYPES,
    PREMUL_FACTOR,
    Call,
    Feed,
    Outcome,
    frozen,
    outcome,
    quiet,
)
from harness.ranks import run_ranks

SOME_DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool)
FEW_DTYPES = (torch.float32, torch.int32)
TO_ROOT = ("reduce", "gather", "gather_object")


class Group:
    """A lofi group and its gloo double, and where the members lie: worked out here, apart."""

    def __init__(self, ranks: list[int], node_size: int):
        self.ranks = ranks
        self.is_mine = dist.get_rank() in ranks
        self.node_size = node_size
        whole = ranks == list(range(dist.get_world_size()))
        made = dist.new_group(ranks, backend="lofi", sort_ranks=False)
        self.lofi = dist.group.WORLD if whole else made
        self.gloo = dist.new_group(ranks, backend="gloo", sort_ranks=False)

    @property
    def nodes(self) -> list[int]:
        return sorted({rank // self.node_size for rank in self.ranks})

    def in_node(self, node: int) -> list[int]:
        return [rank for rank in self.ranks if rank // self.node_size == node]

    def image(self, rank: int, node: int) -> int:
        """The rank at the same place among the members of `node`."""
        return self.in_node(node)[self.in_node(rank // self.node_size).index(rank)]


class Comparison:
    def __init__(self) -> None:
        self.shm = os.environ.get("LOFI_SHM") != "0"
        self.differences: list[str] = []
        self.accepted: Counter[str] = Counter()

    def _has_factor(self, dtype: torch.dtype) -> bool:
        """Whether lofi takes PREMUL_SUM: over gloo, it multiplies itself, but for integers."""
        is_exact = dtype in PREMUL_DTYPES and not dtype.is_floating_point
        return dtype.is_floating_point or dtype.is_complex or (self.shm and is_exact)

    def run(self, group: Group, name: str, function: Any, **how: Any) -> None:
        if name == "gather" and how["dtype"].is_complex:
            return  # gloo has no such gather: test_drop_in.py has its definition
        rank = dist.get_rank()
        expected = Outcome()
        real, factor = how, 1
        if how.get("op") == "PREMUL_SUM" and self._has_factor(how["dtype"]):
            real, factor = {**how, "op": "SUM"}, PREMUL_FACTOR  # gloo has none
        for node in group.nodes:
            feed = Feed(group.image(rank, node), exact=True, factor=factor)
            seen = outcome(function, Call(group.gloo, feed, **real))
            if rank // group.node_size == node:
                expected = seen
        got = outcome(function, Call(group.lofi, Feed(rank, exact=True), **how))
        root = group.ranks[how.get("root", 0)]
        if name in TO_ROOT and rank // group.node_size != root // group.node_size:
            # Takes part in nothing: even the image of the root gets nothing, or an error.
            expected = _untouched(name, Call(group.gloo, Feed(rank, exact=True), **how))
        elif name == "reduce" and rank != root:
            # gloo leaves partial results with the other members.
            expected, got = replace(expected, value=None), replace(got, value=None)
        self.accepted[name] += not got.error
        if _as_truth(got.value) != _as_truth(expected.value) or got.error != expected.error:
            text = f"{group.ranks} {name} {how}: {got}, expected {expected}"
            self.differences.append(text[:1_000])


def _as_truth(value: Any) -> Any:
    """Booleans as true or false: gloo adds their bytes, and true may be any byte but 0."""
    if isinstance(value, list):
        return [_as_truth(part) for part in value]
    if isinstance(value, tuple) and value[0] == "torch.bool":
        return (*value[:3], [byte != 0 for byte in bytes.fromhex(value[3])])
    return value


def _untouched(name: str, call: Call) -> Outcome:
    if name == "reduce":
        return Outcome(value=frozen([call.input(6)]))
    return Outcome(value=frozen([None] if name == "gather_object" else [None, call.input(4)]))


def _train() -> None:
    import lofi

    dist.init_process_group("lofi")
    lofi.start()


def _groups_of(nodes: int, size: int) -> list[list[int]]:
    """The world; unsorted; one rank of each node, unsorted; all of two nodes of three, unsorted."""
    world = nodes * size
    one_each = [node * size + node % size for node in range(nodes)]
    if nodes == 2:
        return [list(range(world)), list(range(world))[::-1], one_each, one_each[::-1]]
    return [list(range(world)), one_each[::-1], [size + 1, 0, 1, size]]


def _dtypes_for(nodes: int, group: Group) -> tuple[torch.dtype, ...]:
    if nodes > 2:
        return FEW_DTYPES
    return collectives.DTYPES if group.lofi is dist.group.WORLD else SOME_DTYPES


def _mirror(nodes: int, size: int, lists: list[list[int]]) -> Any:
    _train()
    comparison = Comparison()
    groups = [Group(ranks, size) for ranks in lists]
    for group in groups:
        if group.is_mine:
            with quiet():
                _run_all(comparison, group, _dtypes_for(nodes, group))
    import lofi

    return comparison.differences[:10], comparison.accepted, lofi.stats()


def _run_all(comparison: Comparison, group: Group, dtypes: tuple[torch.dtype, ...]) -> None:
    moves = collectives.MIRRORED_MOVES | collectives.MIRRORED_OBJECTS
    moves |= collectives.table(collectives.functional_all_gather)
    for number, dtype in enumerate(dtypes):
        root = number % len(group.ranks)
        for name, function in moves.items():
            comparison.run(group, name, function, dtype=dtype, root=root, async_op=number % 2 == 0)
        for op_number, op in enumerate(collectives.ops_of(dtype)):
            if dtype in collectives.COMPLEX and op not in ("SUM", "AVG"):
                continue
            for name, function in collectives.MIRRORED_REDUCTIONS.items():
                how = {"dtype": dtype, "op": op, "root": root, "async_op": op_number % 2 == 0}
                comparison.run(group, name, function, **how)
    for dtype in (torch.float32, torch.int64):
        for op in [
            op for op in collectives.ops_of(dtype) if op in ("SUM", "MAX", "PRODUCT", "AVG")
        ]:
            for name in ("functional_all_reduce", "functional_coalesced"):
                function = collectives.MIRRORED_FUNCTIONAL[name]
                comparison.run(group, name, function, dtype=dtype, op=op)
    comparison.run(group, "sparse_all_reduce", collectives.sparse_all_reduce)
    for name, function in collectives.BARRIERS.items():
        comparison.run(group, name, function)


MIRRORED = (
    collectives.MIRRORED_REDUCTIONS
    | collectives.MIRRORED_MOVES
    | collectives.MIRRORED_OBJECTS
    | collectives.MIRRORED_FUNCTIONAL
    | collectives.BARRIERS
    | collectives.table(collectives.sparse_all_reduce)
)


@pytest.mark.parametrize("nodes, size, shm", [(2, 2, "1"), (3, 2, "1"), (3, 2, "0")])
def test_mirror(nodes, size, shm):
    lists = _groups_of(nodes, size)
    environment = {"LOFI_NODE_SIZE": str(size), "LOFI_LOG": "error", "LOFI_SHM": shm}
    results = run_ranks(_mirror, nodes * size, nodes, size, lists, env=environment)
    for differences, accepted, stats in results:
        assert not differences, "\n".join(differences)
        assert {name for name, count in accepted.items() if count} == set(MIRRORED)
        assert stats["cross_bytes"]["training"] == 0
        assert stats["collectives"]["world"]["training"] == 0


# Without a double.


def _nodes(function: Any, *args: Any, nodes: int = 2, size: int = 2, **env: str) -> list[Any]:
    environment = {"LOFI_NODE_SIZE": str(size), "LOFI_LOG": "error", **env}
    return run_ranks(function, nodes * size, *args, env=environment)


def _call(**how: Any) -> Call:
    return Call(dist.group.WORLD, Feed(dist.get_rank(), exact=True), **how)


def _node_zero_alone() -> Any:
    """Everything that is mirrored, issued by one node only: it waits for no other."""
    _train()
    before = dist.distributed_c10d._get_default_store()
    if dist.get_rank() < 2:
        with quiet():
            for function in MIRRORED.values():
                function(_call(root=1))
        before.set(f"done/{dist.get_rank()}", "yes")
    before.wait(["done/0", "done/1"])
    return dist.get_rank()


@pytest.mark.quick
def test_a_node_waits_for_no_other():
    assert _nodes(_node_zero_alone) == [0, 1, 2, 3]


def _futures() -> Any:
    """Results are whole when the future is, also where slots are still to be filled."""
    _train()
    call = _call()
    seen = []
    for _ in range(20):
        parts, single = call.rooms(1000), call.room(4000)
        works = [
            dist.all_gather(parts, call.input(1000), async_op=True),
            dist.all_gather_into_tensor(single, call.input(1000), async_op=True),
        ]
        summed = call.input(1000)
        works.append(dist.all_reduce(summed, async_op=True))
        slots = works[0].get_future().then(lambda _, p=parts: [part.clone() for part in p])
        whole = works[1].get_future().then(lambda _, s=single: s.clone())
        total = works[2].get_future().then(lambda future: future.value()[0] + 0)
        gathered = torch.cat(slots.wait())
        assert torch.equal(gathered, whole.wait())
        assert torch.equal(total.wait(), gathered.view(4, 1000).sum(0))
        assert all(work.wait() and work.is_completed() for work in works)
        seen.append(gathered.clone())
    return seen


@pytest.mark.quick
def test_futures_hold_the_whole_result():
    results = _nodes(_futures)
    image = [Feed(rank, exact=True).tensor((1000,), torch.float32) for rank in range(4)]
    for rank, seen in enumerate(results):
        first = rank // 2 * 2
        expected = torch.cat([image[first], image[first + 1]] * 2)
        assert all(torch.equal(one, expected) for one in seen)


def _inputs_stay() -> Any:
    """Only what a collective may write is written: scaling must not reach the inputs of others."""
    _train()
    rank = dist.get_rank()
    tensor = torch.full((3,), float(rank + 1))
    dist.reduce(tensor, 0)
    source = torch.full((3,), float(rank + 1))
    dist.all_gather([torch.empty(3) for _ in range(4)], source)
    leaf = torch.full((3,), float(rank + 1), requires_grad=True)
    dist.all_reduce(leaf)
    return tensor, source, leaf.detach(), leaf.is_leaf


def test_inputs_stay_as_they_are():
    for rank, (reduced, source, leaf, is_leaf) in enumerate(_nodes(_inputs_stay)):
        own = float(rank + 1)
        local = 2.0 * (3 if rank < 2 else 7)
        assert reduced.tolist() == [local if rank == 0 else own] * 3
        assert source.tolist() == [own] * 3
        assert leaf.tolist() == [local] * 3 and is_leaf


def _refused() -> Any:
    _train()
    rank, t = dist.get_rank(), torch.ones(4)
    fours = [torch.ones(1) for _ in range(4)]
    other = (rank + 2) % 4
    calls = {
        "all_to_all": [
            lambda: dist.all_to_all(fours, fours),
            lambda: dist.all_to_all_single(t, t),
            lambda: collectives.functional_all_to_all(_call()),
        ],
        "reduce_scatter": [
            lambda: dist.reduce_scatter(torch.ones(1), fours),
            lambda: dist.reduce_scatter_tensor(torch.ones(1), t),
            lambda: collectives.reduce_scatter_in_manager(_call()),
            lambda: collectives.functional_reduce_scatter(_call()),
        ],
        "send": [
            lambda: dist.send(t, other),
            lambda: dist.isend(t, other),
            lambda: dist.send_object_list([1], other),
            lambda: dist.batch_isend_irecv([dist.P2POp(dist.isend, t, other)]),
        ],
        "recv": [
            lambda: dist.recv(t, other),
            lambda: dist.irecv(t, other),
            lambda: dist.recv_object_list([1], other),
        ],
    }
    with quiet():
        return {name: [_error(call) for call in each] for name, each in calls.items()}, t


def _error(call: Any) -> tuple[bool, str]:
    try:
        call()
    except Exception as error:
        return isinstance(error, RuntimeError), str(error)
    return False, "nothing was raised"


@pytest.mark.quick
def test_what_cannot_be_mirrored_is_refused_by_name():
    for refused, tensor in _nodes(_refused):
        for name, errors in refused.items():
            for is_runtime_error, text in errors:
                assert is_runtime_error and name in text and "lofi" in text, text
        assert tensor.tolist() == [1.0] * 4


def _point_to_point() -> Any:
    """Inside the node, sends and receives go on; the sender's rank is that in the group."""
    _train()
    rank = dist.get_rank()
    peer, received = rank ^ 1, []
    for recv in (lambda t: dist.recv(t, peer), dist.recv):
        tensor = torch.zeros(2)
        if rank % 2:
            dist.send(torch.full((2,), float(rank)), peer)
            received.append(recv(tensor))
        else:
            received.append(recv(tensor))
            dist.send(torch.full((2,), float(rank)), peer)
        assert tensor.tolist() == [float(peer)] * 2
    works = [dist.isend(torch.full((1,), float(rank)), peer), dist.irecv(torch.zeros(1))]
    for work in works:
        work.wait()
    return received, works[1]._source_rank()


def test_point_to_point_inside_the_node():
    for rank, (received, source) in enumerate(_nodes(_point_to_point)):
        assert received == [rank ^ 1, rank ^ 1] and source == rank ^ 1


def _real() -> Any:
    """A broadcast or scatter of the script's own crosses nodes, to the truth of all ranks."""
    import lofi

    _train()
    feed = Feed(dist.get_rank(), exact=True)
    functions = collectives.table(
        collectives.broadcast,
        collectives.scatter,
        collectives.broadcast_object_list,
        collectives.functional_broadcast,
    )
    gloo = dist.new_group(backend="gloo")
    with quiet():
        pairs = {
            name: [outcome(function, Call(group, feed, root=2)) for group in (None, gloo)]
            for name, function in functions.items()
            if name != "functional_broadcast"
        }
    return pairs, lofi.stats()["cross_bytes"]["training"]


def test_broadcasts_of_the_script_are_real():
    results = _nodes(_real)
    for pairs, _ in results:
        for name, (got, expected) in pairs.items():
            assert not got.error and got == expected, name
    assert results[2][1] > 0


def _uneven() -> Any:
    _train()
    group = dist.new_group([0, 1, 2])
    functions = MIRRORED | collectives.POINT_TO_POINT | collectives.OBJECTS
    if dist.get_rank() == 3:
        return {}
    call = Call(group, Feed(dist.get_rank()))
    with quiet():
        return {name: _error(lambda f=f: f(call)) for name, f in functions.items()}


def test_uneven_groups_are_refused_at_first_use():
    for errors in _nodes(_uneven):
        for name, (is_runtime_error, text) in errors.items():
            assert is_runtime_error and "2 in node 0, 1 in node 1" in text, (name, text)


def _world_inside() -> Any:
    import lofi

    _train()
    tensor = torch.full((2,), float(dist.get_rank() + 1))
    with lofi.scope("world"):
        dist.all_reduce(tensor)
    again = torch.full((2,), float(dist.get_rank() + 1))
    dist.all_reduce(again)
    return tensor.tolist(), again.tolist()


def test_scope_world_is_real():
    for rank, (world, node) in enumerate(_nodes(_world_inside)):
        assert world == [10.0] * 2
        assert node == [2.0 * (3 if rank < 2 else 7)] * 2
