# SPDX-License-Identifier: MIT
"""One node is gloo, in what belongs to a whole job: errors, works, time-outs, meshes, gradients.

Each function below runs once under each backend, with the same ranks, and returns what happened,
by name. The two must be equal on every rank: values to the bit, exceptions by type and text, or by
type alone where the text holds addresses and ports. What shared memory does better than gloo, or in
other words, is listed with its test, which then runs with LOFI_SHM=0 too: nothing differs there.
"""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import collectives
from harness.collectives import Call, Feed, Outcome, outcome, quiet
from harness.ranks import run_ranks
from torch import nn

SHORT = timedelta(milliseconds=200)
# Far above SHORT, far below the time-out of a group: a deadline that was ignored shows.
DEADLINE_SECONDS = 60.0
Outcomes = dict[str, Outcome]


def _job(function: Callable[[], Outcomes], backend: str, timeout: timedelta | None) -> Outcomes:
    dist.init_process_group(backend, timeout=timeout)
    with quiet():
        return function()


def _compare(
    function: Callable[[], Outcomes],
    size: int,
    *,
    works: int,
    timeout: timedelta | None = None,
    texts: bool = True,
    own_texts: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    shm_differs: str = "",
) -> list[Outcomes]:
    """Run under gloo and under lofi; `works`: how many of the outcomes must be values.

    `shm_differs` is a pattern of names that need not be equal through shared memory.
    """
    run = partial(run_ranks, _job, size, function, timeout=DEADLINE_SECONDS)
    gloo = run("gloo", timeout, env=env)
    if shm_differs:
        without = run("lofi", timeout, env={**(env or {}), "LOFI_SHM": "0"})
        _check_equal(gloo, without, works, texts, own_texts)
    lofi = run("lofi", timeout, env=env)
    _check_equal(gloo, lofi, works, texts, own_texts, shm_differs)
    return lofi


def _check_equal(
    gloo: list[Outcomes],
    lofi: list[Outcomes],
    works: int,
    texts: bool,
    own_texts: tuple[str, ...],
    may_differ: str = "",
) -> None:
    for rank, (expected, got) in enumerate(zip(gloo, lofi, strict=True)):
        own = tuple(expected) if not texts else own_texts
        expected, got = (_without_texts(outcomes, own) for outcomes in (expected, got))
        different = [
            name
            for name in expected
            if got.get(name) != expected[name]
            and not (may_differ and re.fullmatch(may_differ, name))
        ]
        assert expected.keys() == got.keys()
        assert not different, "\n".join(
            f"rank {rank} {name}: {got[name]}, gloo: {expected[name]}" for name in different
        )
        accepted = [name for name, one in expected.items() if not one.error]
        assert len(accepted) >= works, accepted


def _without_texts(outcomes: Outcomes, names: tuple[str, ...]) -> Outcomes:
    """A DistBackendError, which liblofi's errors are, counts as the RuntimeError that it is."""
    bare = {name: replace(one, text="") for name, one in outcomes.items() if name in names}
    for name, one in bare.items():
        if one.error == "DistBackendError":
            bare[name] = replace(one, error="RuntimeError")
    return {**outcomes, **bare}


def _here() -> Call:
    return Call(dist.group.WORLD, Feed(dist.get_rank()))


def _backend() -> Any:
    return dist.group.WORLD._get_backend(torch.device("cpu"))


# Odd tensors.


def _all_collectives_of(tensor: torch.Tensor) -> list[Any]:
    """Collectives that keep the shape, on copies with the same strides and flags."""
    size = dist.get_world_size()
    copies = [tensor.detach().clone() for _ in range(5)]
    gathered = [torch.zeros_like(tensor) for _ in range(size)]
    dist.all_reduce(copies[0])
    dist.broadcast(copies[1], 1)
    dist.reduce(copies[2], 0)
    dist.all_gather(gathered, copies[3])
    single = torch.zeros(size * tensor.numel(), dtype=tensor.dtype)
    dist.all_gather_into_tensor(single, copies[4].reshape(-1))
    return [copies, gathered, single]


def _in_place(function: Callable[[torch.Tensor], Any], tensor: torch.Tensor) -> list[Any]:
    function(tensor)
    return [tensor, tensor.requires_grad, tensor.is_leaf, tensor._version]


def _average(tensor: torch.Tensor) -> None:
    dist.all_reduce(tensor, dist.ReduceOp.AVG)


def _gather_into(tensor: torch.Tensor) -> Any:
    parts = list(tensor.t().chunk(dist.get_world_size(), dim=1))
    dist.all_gather(parts, torch.full_like(parts[0].contiguous(), 1.0 + dist.get_rank()))
    return tensor


def odd_tensors() -> Outcomes:
    call = _here()
    wide = call.input(4, 6)
    leaf = lambda: call.input(3).requires_grad_()  # noqa: E731
    results = {
        "transposed": outcome(_in_place, dist.all_reduce, wide.t()),
        "transposed average": outcome(_in_place, _average, call.input(4, 6).t()),
        "strided": outcome(_in_place, dist.all_reduce, call.input(8)[::2]),
        "slice": outcome(_in_place, dist.all_reduce, call.input(8)[2:5]),
        "expanded": outcome(_in_place, dist.all_reduce, call.input(1).expand(3)),
        "transposed broadcast": outcome(_in_place, lambda t: dist.broadcast(t, 0), wide.t()),
        "transposed gather": outcome(_gather_into, call.input(4, 6)),
        "channels last": outcome(
            _in_place,
            dist.all_reduce,
            call.input(1, 2, 3, 4).to(memory_format=torch.channels_last),
        ),
        "leaf": outcome(_in_place, dist.all_reduce, leaf()),
        "leaf average": outcome(_in_place, _average, leaf()),
        "leaf broadcast": outcome(_in_place, lambda t: dist.broadcast(t, 0), leaf()),
        "leaf coalesced": outcome(_in_place, lambda t: dist.all_reduce_coalesced([t]), leaf()),
        "product of a leaf": outcome(_in_place, lambda t: dist.all_reduce(t * 2), leaf()),
        "conjugate": outcome(
            _in_place, dist.all_reduce, Feed(call.rank).tensor((3,), torch.complex64).conj()
        ),
    }
    for name, shape in {"empty": (0,), "empty matrix": (0, 3), "zero-dim": (), "one": (1,)}.items():
        results[name] = outcome(_all_collectives_of, call.input(*shape))
    nothing = torch.zeros(0)
    results["empty all_to_all"] = outcome(dist.all_to_all_single, nothing.clone(), nothing)
    results["empty list"] = outcome(dist.all_reduce_coalesced, [])
    results["large"] = outcome(_in_place, dist.all_reduce, call.input(300_001))
    with torch.inference_mode():
        results["inference"] = outcome(_in_place_unversioned, dist.all_reduce, call.input(3))
    return results


def _in_place_unversioned(function: Callable[[torch.Tensor], Any], tensor: torch.Tensor) -> Any:
    function(tensor)
    return tensor


def test_odd_tensors():
    # gloo divides the sum, which counts as a write, and neither that nor a copy may be to a leaf.
    differs = "transposed average|leaf average|leaf coalesced"
    _compare(odd_tensors, 2, works=14, shm_differs=differs)


# Refusals: all seen by every rank before anything is sent, so that no rank is left waiting.


def refusals() -> Outcomes:
    size, rank = dist.get_world_size(), dist.get_rank()
    pg, backend = dist.group.WORLD, _backend()
    t, other = torch.ones(4), torch.ones(4, dtype=torch.int64)
    four = [torch.ones(4) for _ in range(size)]
    uneven = [torch.ones(i + 1) for i in range(size)]
    meta = torch.ones(4, device="meta")
    sparse = torch.eye(4).to_sparse()

    def root(number: int) -> Any:
        options = dist.BroadcastOptions()
        options.rootRank = number
        return options

    def with_root(options: Any, number: int) -> Any:
        options.rootRank = number
        return options

    calls: dict[str, Callable[[], Any]] = {
        "all_reduce of two": lambda: pg.allreduce([t, t]).wait(),
        "all_reduce of none": lambda: pg.allreduce([]).wait(),
        "all_reduce of a list": lambda: dist.all_reduce([t]),
        "all_reduce of meta": lambda: dist.all_reduce(meta),
        "all_reduce of csr": lambda: dist.all_reduce(torch.eye(4).to_sparse_csr()),
        "sparse MAX": lambda: dist.all_reduce(sparse.clone(), dist.ReduceOp.MAX),
        "sparse int16": lambda: dist.all_reduce(sparse.to(torch.int16)),
        "sparse broadcast": lambda: dist.broadcast(sparse, 0),
        "sparse all_gather": lambda: dist.all_gather([sparse] * size, sparse),
        "coalesced of two dtypes": lambda: dist.all_reduce_coalesced([t, other]),
        "broadcast of two": lambda: pg.broadcast([t, t], root(0)).wait(),
        "broadcast root -1": lambda: pg.broadcast([t], root(-1)).wait(),
        "broadcast root too high": lambda: pg.broadcast([t], root(size)).wait(),
        "broadcast group_src too high": lambda: dist.broadcast(t, group_src=size + 3),
        "broadcast src of nobody": lambda: dist.broadcast(t, 17),
        "reduce root too high": lambda: pg.reduce(
            [t], with_root(dist.ReduceOptions(), size)
        ).wait(),
        "reduce of two": lambda: pg.reduce([t, t], dist.ReduceOptions()).wait(),
        "gather root too high": lambda: pg.gather(
            [four], [t], with_root(dist.GatherOptions(), size)
        ).wait(),
        "scatter root too high": lambda: pg.scatter(
            [t], [four], with_root(dist.ScatterOptions(), size)
        ).wait(),
        "all_gather into too few": lambda: dist.all_gather(four[:1], t),
        "all_gather into no list": lambda: pg.allgather([], [t]).wait(),
        "all_gather two lists": lambda: pg.allgather([four, four], [t]).wait(),
        "all_gather of two dtypes": lambda: dist.all_gather(four, other),
        "all_gather uneven": lambda: dist.all_gather(uneven, t),
        "all_gather_into_tensor too small": lambda: dist.all_gather_into_tensor(t, t),
        "all_gather_into_tensor stacked": lambda: dist.all_gather_into_tensor(
            torch.ones(size, 4), t
        ),
        "all_gather_into_tensor of two dtypes": lambda: dist.all_gather_into_tensor(
            torch.ones(4 * size), other
        ),
        "all_gather_coalesced wrong": lambda: dist.all_gather_coalesced([[t]], [t]),
        "gather without a list": lambda: dist.gather(t, None, dst=rank),
        "gather list elsewhere": lambda: dist.gather(t, four, dst=(rank + 1) % size),
        "gather too few": lambda: dist.gather(t, four[:1], dst=rank),
        "scatter too few": lambda: dist.scatter(t, four[:1], src=rank),
        "scatter without a list": lambda: dist.scatter(t, None, src=rank),
        "scatter list elsewhere": lambda: dist.scatter(t, four, src=(rank + 1) % size),
        "reduce_scatter too few": lambda: dist.reduce_scatter(t, four[:1]),
        "reduce_scatter wrong shape": lambda: dist.reduce_scatter(torch.ones(3), four),
        "reduce_scatter_tensor wrong": lambda: dist.reduce_scatter_tensor(t, torch.ones(7)),
        "reduce_scatter_base wrong": lambda: dist.reduce_scatter_tensor(t, torch.ones(size, 4)),
        "reduce_scatter of two dtypes": lambda: dist.reduce_scatter_tensor(
            t, torch.ones(4 * size, dtype=torch.int64)
        ),
        "all_to_all too few": lambda: dist.all_to_all(four, four[:1]),
        "all_to_all uneven": lambda: dist.all_to_all(uneven, uneven),
        "all_to_all_single splits": lambda: dist.all_to_all_single(t, t, [9] * size, [9] * size),
        "all_to_all_single split count": lambda: dist.all_to_all_single(t, t, [4], [4]),
        "all_to_all_single of two dtypes": lambda: dist.all_to_all_single(t, other),
        "all_to_all_single indivisible": lambda: dist.all_to_all_single(
            torch.ones(2 * size + 1), torch.ones(2 * size + 1)
        ),
        "send to self": lambda: dist.send(t, rank),
        "send negative tag": lambda: backend.send([t], (rank + 1) % size, -1),
        "send of two": lambda: backend.send([t, t], (rank + 1) % size, 0),
        "send of strided": lambda: dist.send(torch.ones(4, 4).t(), (rank + 1) % size),
        "recv into strided": lambda: dist.recv(torch.ones(4, 4).t(), (rank + 1) % size),
        "recv of meta": lambda: dist.recv(meta, (rank + 1) % size),
        "barrier device_ids": lambda: dist.barrier(device_ids=[0]),
        "gather_single": lambda: pg.gather_single(torch.ones(4 * size), t, 0).wait(),
        "coalescing start": lambda: backend._start_coalescing(),
        "coalescing end": lambda: backend._end_coalescing(),
        "mixed in manager": lambda: _mixed_in_manager(t, size),
        "group of no member": lambda: dist.all_reduce(t, group=dist.new_group([0])),
    }
    results = {}
    for name, call in calls.items():
        results[name] = outcome(call)
        # The group must be as good as before, or as bad.
        results[f"{name}, then"] = outcome(collectives.all_reduce, _here())
    return results


def _mixed_in_manager(t: torch.Tensor, size: int) -> None:
    from torch.distributed import distributed_c10d as c10d

    try:
        with c10d._coalescing_manager():
            dist.all_reduce(t)
            dist.all_gather_into_tensor(torch.ones(4 * size), t)
    finally:
        c10d._world.pg_coalesce_state.clear()


@pytest.mark.parametrize("size, env", [(2, None), (2, {"LOFI_NODE_SIZE": "1"})])
def test_refusals(size, env):
    own_texts = ("coalescing start", "coalescing end")
    outcomes = _compare(refusals, size, works=50, env=env, own_texts=own_texts)[0]
    assert sum(bool(one.error) for one in outcomes.values()) > 40


# Works and futures.


def _future_of(work: Any) -> Any:
    return work.get_future() if hasattr(work, "get_future") else work


def _each_fact(work: Any, once: bool) -> dict[str, Outcome]:
    """What a work tells. gloo's sends and receives can be waited for only `once`."""
    facts: dict[str, Callable[[], Any]] = {
        "wait": lambda: work.wait(),
        "wait with time": lambda: work.wait(timedelta(seconds=20)),
        "is_completed": lambda: work.is_completed(),
        "is_success": lambda: work.is_success(),
        "exception": lambda: work.exception(),
        "result": lambda: work.result(),
        "synchronize": lambda: work.synchronize(),
        "source_rank": lambda: work.source_rank(),
        "future": lambda: _future_of(work).wait(),
        "future value": lambda: _future_of(work).value(),
        "future done": lambda: _future_of(work).done(),
        "future result": lambda: str(work.get_future_result().wait()),
        "then": lambda: _future_of(work).then(_squared).wait(),
        "chain": lambda: _future_of(work).then(_squared).then(_squared).wait(),
        "raising then": lambda: _future_of(work).then(_raise).wait(),
        "sequence": lambda: work._get_sequence_number(),
        "duration": lambda: work._get_duration(),
        "op type": lambda: str(work._get_op_type()),
        "boxed": lambda: type(work.boxed()).__name__,
    }
    waits = ("wait with time", "synchronize") if once else ()
    return {name: outcome(fact) for name, fact in facts.items() if name not in waits}


def _tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors_in(part)]


def _squared(future: Any) -> Any:
    value = future.value()
    return [tensor * tensor for tensor in _tensors_in(value)]


def _raise(future: Any) -> Any:
    raise LookupError("from a callback")


def works() -> Outcomes:
    call, size = _here(), dist.get_world_size()
    t = lambda number=0: call.input(4, number=number)  # noqa: E731
    started = {
        "all_reduce": lambda: dist.all_reduce(t(), async_op=True),
        "coalesced": lambda: dist.all_reduce_coalesced([t(1), t(2)], async_op=True),
        "reduce": lambda: dist.reduce(t(), 0, async_op=True),
        "broadcast": lambda: dist.broadcast(t(), 0, async_op=True),
        "all_gather": lambda: dist.all_gather(call.rooms(4), t(), async_op=True),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(
            call.room(4 * size), t(), async_op=True
        ),
        "gather": lambda: dist.gather(t(), call.rooms(4) if call.is_root else None, async_op=True),
        "scatter": lambda: dist.scatter(
            call.room(4), [t(i) for i in range(size)] if call.is_root else None, async_op=True
        ),
        "reduce_scatter": lambda: dist.reduce_scatter(
            call.room(4), [t(i) for i in range(size)], async_op=True
        ),
        "all_to_all_single": lambda: dist.all_to_all_single(
            call.room(2 * size), call.input(2 * size), async_op=True
        ),
        "barrier": lambda: dist.barrier(async_op=True),
        "send or recv": lambda: (
            dist.isend(t(), 1 - call.rank) if call.rank else dist.irecv(t(), 1 - call.rank)
        ),
    }
    results = {}
    for name, start in started.items():
        facts = _each_fact(start(), once=name == "send or recv")
        results |= {f"{name}: {fact}": one for fact, one in facts.items()}
    handles: list[Any] = [dist.all_reduce(t(i), async_op=True) for i in range(20)]
    for handle in reversed(handles):  # in any order
        handle.wait()
    results["many in flight"] = outcome(lambda: [handle.result() for handle in handles])
    collected = torch.futures.collect_all([handle.get_future() for handle in handles])
    results["collected"] = outcome(lambda: [future.value() for future in collected.wait()])
    return results


def test_works_and_futures():
    # gloo counts its own, has no future of a reduce_scatter, and leaves partial sums by a reduce.
    differs = ".*: sequence|reduce_scatter: .*|reduce: (result|future.*|then|chain)"
    _compare(works, 2, works=120, shm_differs=differs)


def sequence_numbers() -> Outcomes:
    pg, call = dist.group.WORLD, _here()
    results = {"new": outcome(pg._get_sequence_number_for_group)}
    functions = collectives.REDUCTIONS | collectives.MOVES | collectives.POINT_TO_POINT
    for name, function in (functions | collectives.BARRIERS).items():
        function(call)
        results[name] = outcome(pg._get_sequence_number_for_group)
    second = dist.new_group([1, 0])
    results["new group"] = outcome(second._get_sequence_number_for_group)
    dist.all_reduce(torch.ones(1), group=second)
    results["new group, then"] = outcome(second._get_sequence_number_for_group)
    return results


def test_sequence_numbers():
    lofi = _compare(sequence_numbers, 2, works=20, shm_differs=".*")
    assert lofi[0] == lofi[1]
    numbers = [one.value for name, one in lofi[0].items() if not name.startswith("new")]
    assert numbers == sorted(set(numbers))


# Time-outs. Only the type is compared: the texts hold addresses.


def _alone(function: Callable[[], Any]) -> Outcome:
    """Rank 0 calls a collective that the others do not come to."""
    begin = time.monotonic()
    seen = outcome(function) if dist.get_rank() == 0 else Outcome()
    assert time.monotonic() - begin < DEADLINE_SECONDS / 3, "the deadline was overlooked"
    return seen


def _stay_until_seen() -> None:
    """The ranks that stayed away must not end before: that would be a closed connection."""
    store = dist.distributed_c10d._get_default_store()
    if dist.get_rank() == 0:
        store.set("seen", "yes")
    store.wait(["seen"])


def _short_group() -> Any:
    """A group that is made, and has met, under a time-out that a busy machine can keep."""
    group = dist.new_group()
    dist.barrier(group=group)
    dist.distributed_c10d._set_pg_timeout(SHORT, group)
    return group


def timeouts() -> Outcomes:
    size, t = dist.get_world_size(), torch.ones(4)
    alone: dict[str, Callable[[Any], Any]] = {
        "all_reduce": lambda group: dist.all_reduce(t, group=group),
        "async": lambda group: dist.all_reduce(t, async_op=True, group=group).wait(),
        "all_gather": lambda group: dist.all_gather([t.clone()] * size, t, group=group),
        "gather": lambda group: dist.gather(t, [t.clone()] * size, group=group),
        "reduce_scatter": lambda group: dist.reduce_scatter_tensor(t, t.repeat(size), group=group),
        "all_to_all": lambda group: dist.all_to_all_single(t, t, group=group),
        "broadcast": lambda group: dist.broadcast(t, 1, group=group),
        "barrier": lambda group: dist.barrier(group=group),
        # gloo's receives take no notice of a time-out that was set later.
        "recv": lambda group: dist.irecv(t, 1, group=group).wait(SHORT),
        "recv from any": lambda group: dist.irecv(t, group=group).wait(SHORT),
        "object": lambda group: dist.all_gather_object([None] * size, 1, group=group),
        "monitored_barrier": lambda group: dist.monitored_barrier(timeout=SHORT, group=group),
        "monitored_barrier of all": lambda group: dist.monitored_barrier(
            timeout=SHORT, wait_all_ranks=True, group=group
        ),
        "wait": lambda group: dist.all_reduce(t, async_op=True, group=group).wait(SHORT),
        "future": lambda group: dist.all_reduce(t, async_op=True, group=group).get_future().wait(),
    }
    groups = {name: _short_group() for name in alone}
    groups["given to new_group"] = dist.new_group(timeout=10 * SHORT)
    alone["given to new_group"] = alone["all_reduce"]
    dist.barrier()
    results = {}
    for name, function in alone.items():
        group = groups[name]
        results[name] = _alone(lambda f=function, g=group: f(g))
        results[f"{name}, again"] = _alone(lambda f=function, g=group: f(g))
    results["wait on a long group"] = _alone(lambda: dist.all_reduce(t, async_op=True).wait(SHORT))
    _stay_until_seen()
    return results


def test_a_rank_that_does_not_come():
    outcomes = _compare(timeouts, 2, works=0, texts=False)
    in_time = "[Tt]imed out|failed to pass|rank 1 did not come in time"
    for name, one in outcomes[0].items():
        assert one.error in ("RuntimeError", "DistBackendError"), (name, one)
        assert name.endswith("again") or re.search(in_time, one.text), (
            name,
            one,
        )


def monitored() -> Outcomes:
    """Ranks 1 and 2 of 4 stay away: rank 0 names them, the others learn that it failed."""
    results = {}
    for name, all_ranks in {"first": False, "all": True}.items():
        group = dist.new_group()
        dist.monitored_barrier(group=group)
        results[name] = (
            Outcome()
            if dist.get_rank() in (1, 2)
            else outcome(_monitor, group, SHORT if dist.get_rank() == 0 else 4 * SHORT, all_ranks)
        )
    _stay_until_seen()
    return results


def _monitor(group: Any, timeout: timedelta, all_ranks: bool) -> None:
    dist.monitored_barrier(group=group, timeout=timeout, wait_all_ranks=all_ranks)


def test_monitored_barrier_names_who_is_missing():
    first, *_, last = _compare(monitored, 4, works=0, texts=False)
    assert first["first"].error == first["all"].error == last["all"].error == "RuntimeError"


def monitored_text() -> Outcomes:
    stays_away = dist.get_rank() == 1
    seen = {} if stays_away else {"missing": outcome(_monitor, dist.group.WORLD, SHORT, True)}
    _stay_until_seen()
    return seen


def test_monitored_barrier_text():
    lofi = run_ranks(_job, 3, monitored_text, "lofi", None)
    assert "Ranks 1 failed to pass monitoredBarrier" in lofi[0]["missing"].text


def lost() -> Outcomes:
    """Rank 1 ends in the middle."""
    import os

    dist.barrier()
    if dist.get_rank() == 1:
        os._exit(0)
    return {
        name: outcome(function, _here())
        for name, function in collectives.table(
            collectives.all_reduce, collectives.all_gather, collectives.reduce
        ).items()
    }


def test_a_rank_that_dies():
    gloo, lofi, shm = (
        run_ranks(_job, 2, lost, backend, timedelta(seconds=5), env=env, may_fail=True)[0]
        for backend, env in (("gloo", {}), ("lofi", {"LOFI_SHM": "0"}), ("lofi", {}))
    )
    assert {name: one.error for name, one in gloo.items()} == {
        name: one.error for name, one in lofi.items()
    }
    assert all(one.error for one in lofi.values())
    for one in shm.values():
        assert one.error == "DistBackendError" and "rank 1" in one.text, one


# Groups of every making.


def _ranks_of(group: Any) -> Any:
    member = group is not None and group != dist.GroupMember.NON_GROUP_MEMBER
    return dist.get_process_group_ranks(group) if member else None


def _sum_over(group: Any) -> Any:
    if _ranks_of(group) is None:
        return None
    tensor = Feed(dist.get_rank(), exact=True).tensor((3,), torch.float32)
    dist.all_reduce(tensor, group=group)
    return [tensor, _ranks_of(group), dist.get_rank(group), dist.get_world_size(group)]


def groups() -> Outcomes:
    rank = dist.get_rank()
    subgroup, every_subgroup = dist.new_subgroups(2)
    numbered, _ = dist.new_subgroups_by_enumeration([[0, 3], [1, 2]])
    local = dist.new_group([0, 1] if rank < 2 else [2, 3], use_local_synchronization=True)
    described = dist.new_group([0, 1, 2], group_desc="described", timeout=timedelta(seconds=9))
    split = dist.split_group(split_ranks=[[0, 2], [1, 3]])
    of_split = dist.split_group(parent_pg=split, split_ranks=[[0], [1]])
    partial = dist.split_group(split_ranks=[[1, 2, 3]])
    made = {
        "new_subgroups": subgroup,
        "by enumeration": numbered,
        "local": local,
        "described": described,
        "split": split,
        "split of a split": of_split,
        "partial split": partial,
        "world": None if rank == 5 else dist.group.WORLD,
    }
    results = {name: outcome(_sum_over, group) for name, group in made.items()}
    results["subgroups"] = outcome(lambda: len(every_subgroup))
    for name, group in made.items():
        if _ranks_of(group) is None:
            continue
        backend = group._get_backend(torch.device("cpu"))
        options = backend.options
        results[f"{name} timeout"] = outcome(lambda o=options: str(o._timeout))
        if name != "world":  # torch lists no members for the default group; lofi does
            results[f"{name} members"] = outcome(lambda o=options: list(o.global_ranks_in_group))
        results[f"{name} desc"] = outcome(lambda g=group: g.group_desc)
        results[f"{name} splits"] = outcome(lambda b=backend: b.supports_splitting)
        results[f"{name} place"] = outcome(lambda b=backend: [b.rank(), b.size()])
    if rank < 3:
        dist.destroy_process_group(described)
    results["after destroy"] = outcome(_sum_over, split)
    return results


def test_groups_of_every_making():
    _compare(groups, 4, works=40)


def again() -> Outcomes:
    """The default group is destroyed and made anew, with the ranks the other way round."""
    backend, size, rank = dist.get_backend(), dist.get_world_size(), dist.get_rank()
    first = outcome(_sum_over, dist.group.WORLD)
    store = dist.distributed_c10d._get_default_store()
    dist.destroy_process_group()
    results = {"first": first, "nothing": outcome(_sum_over, None), "none": outcome(dist.barrier)}
    second = dist.PrefixStore("second", store)
    dist.init_process_group(backend, store=second, rank=size - 1 - rank, world_size=size)
    results["second"] = outcome(_sum_over, dist.group.WORLD)
    results["new group"] = outcome(lambda: _sum_over(dist.new_group([0, 2])))
    dist.barrier()
    return results


def test_a_second_default_group():
    _compare(again, 3, works=4)


# What is built on groups.


def meshes() -> Outcomes:
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    call = _here()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    results = {"coordinate": outcome(mesh.get_coordinate)}
    for name in ("outer", "inner"):
        results[name] = outcome(_sum_over, mesh.get_group(name))
        results[f"{name} mesh"] = outcome(lambda n=name: mesh[n].mesh.tolist())
        for title, function in (collectives.FUNCTIONAL | collectives.MOVES).items():
            one = Call(mesh.get_group(name), call.feed)
            results[f"{name} {title}"] = outcome(function, one)
    results["flat"] = outcome(lambda: _sum_over(mesh._flatten().get_group()))
    crossed = DeviceMesh("cpu", [[3, 1], [0, 2]], mesh_dim_names=("rows", "columns"))
    for name in ("rows", "columns"):
        results[name] = outcome(_sum_over, crossed.get_group(name))
    whole = Feed(7).tensor((8, 6), torch.float32)
    for name, placements in {
        "sharded": [Shard(0), Shard(1)],
        "rows": [Shard(0), Replicate()],
        "replicated": [Replicate(), Replicate()],
    }.items():
        tensor = distribute_tensor(whole, mesh, placements)
        results[f"{name} local"] = outcome(tensor.to_local)
        results[f"{name} whole"] = outcome(tensor.full_tensor)
        results[f"{name} product"] = outcome(lambda t=tensor: (t @ t.t()).full_tensor())
        results[f"{name} sum"] = outcome(lambda t=tensor: t.sum().full_tensor())
        results[f"{name} moved"] = outcome(
            lambda t=tensor: t.redistribute(mesh, [Shard(1), Shard(0)]).to_local()
        )
    return results


def test_meshes():
    _compare(meshes, 4, works=50)


def gradients() -> Outcomes:
    import torch.distributed.nn.functional as nnf

    size, feed = dist.get_world_size(), Feed(dist.get_rank())
    weight = feed.tensor((2 * size,), torch.float32, 9)

    def through(function: Callable[[torch.Tensor], Any]) -> Any:
        leaf = feed.tensor((2 * size,), torch.float32).requires_grad_()
        results = function(leaf)
        flat = torch.cat([t.reshape(-1) for t in _tensors_in(results)])
        (flat * flat * weight[0]).sum().backward()
        return [results, leaf.grad]

    parts = lambda leaf: list(leaf.chunk(size))  # noqa: E731
    calls: dict[str, Callable[[torch.Tensor], Any]] = {
        "all_reduce": nnf.all_reduce,
        "all_reduce MAX": lambda leaf: nnf.all_reduce(leaf, dist.ReduceOp.MAX),
        "all_gather": lambda leaf: nnf.all_gather(leaf),
        "broadcast": lambda leaf: nnf.broadcast(leaf, 0),
        "reduce": lambda leaf: nnf.reduce(leaf, 0),
        "gather": lambda leaf: nnf.gather(leaf, 0),
        "scatter": lambda leaf: nnf.scatter(parts(leaf), 0),
        "reduce_scatter": lambda leaf: nnf.reduce_scatter(torch.empty(2), parts(leaf)),
        "all_to_all": lambda leaf: nnf.all_to_all([torch.empty(2)] * size, parts(leaf)),
        "all_to_all_single": lambda leaf: nnf.all_to_all_single(torch.empty(2 * size), leaf),
        "all_gather_base": lambda leaf: nnf._all_gather_base(torch.empty(2 * size * size), leaf),
    }
    return {name: outcome(through, function) for name, function in calls.items()}


def test_gradients_of_collectives():
    # Outside of the root gloo leaves partial sums.
    _compare(gradients, 2, works=8, shm_differs="reduce")


def _network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def training() -> Outcomes:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
    from torch.distributed.algorithms.join import Join
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel as DDP

    rank = dist.get_rank()

    def train(steps: int, zero: bool, hook: Any, **how: Any) -> Any:
        model = DDP(_network(), **how)
        if hook is not None:
            model.register_comm_hook(None, hook)
        parameters = model.parameters()
        optimizer = (
            ZeroRedundancyOptimizer(parameters, torch.optim.Adam, lr=0.1)
            if zero
            else torch.optim.Adam(parameters, lr=0.1)
        )
        torch.manual_seed(rank)
        with Join([model]):
            for _ in range(steps):
                optimizer.zero_grad()
                model(torch.randn(8, 6)).square().mean().backward()
                optimizer.step()
        return [list(model.state_dict().values()), model._get_ddp_logging_data()["world_size"]]

    return {
        "plain": outcome(train, 3, False, None),
        "small buckets": outcome(lambda: train(3, False, None, bucket_cap_mb=1e-4)),
        "unused": outcome(lambda: train(3, False, None, find_unused_parameters=True)),
        "views": outcome(lambda: train(3, False, None, gradient_as_bucket_view=True)),
        "static": outcome(lambda: train(3, False, None, static_graph=True)),
        "uneven": outcome(train, 3 + rank, False, None),
        "bf16": outcome(train, 3, False, default_hooks.bf16_compress_hook),
        "zero": outcome(train, 3, True, None),
    }


def test_training():
    _compare(training, 2, works=8)
