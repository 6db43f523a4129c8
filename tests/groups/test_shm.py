# SPDX-License-Identifier: MIT
"""Inside a machine the collectives of tensors on the CPU go through shared memory.

That each gives gloo's bits, test_differential.py tells; here is what is not gloo's: when the memory
is used, PREMUL_SUM and the factor K, works and futures of a thread that is liblofi's, and what
happens where no memory can be shared.
"""

import os
import resource
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import collectives
from harness.collectives import Feed, outcome
from harness.ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP


def _join() -> None:
    dist.init_process_group("lofi", timeout=timedelta(seconds=20))


def _inner(group: Any = None, span: str = "node") -> Any:
    from lofi.groups import lookup

    return lookup.backend_of(group).inner("cpu", span)


def _transport(group: Any = None, span: str = "node") -> str:
    return getattr(_inner(group, span), "transport", "gloo")


def _input(dtype: torch.dtype = torch.float32, number: int = 0, *shape: int) -> torch.Tensor:
    return Feed(dist.get_rank()).tensor(shape or (5,), dtype, number)


# ---- when it is used ----


def _transports() -> Any:
    _join()
    alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    return _transport(), _transport(alone), _transport(span="column")


@pytest.mark.parametrize("shm, node", [("1", "shm"), ("0", "gloo")])
def test_the_setting_is_kept(shm, node):
    environment = {"LOFI_NODE_SIZE": "2", "LOFI_SHM": shm}
    for world, alone, column in run_ranks(_transports, 4, env=environment):
        assert world == column == node
        assert alone == ("self" if shm == "1" else "gloo")


def _configured() -> str:
    import lofi

    lofi.configure(shm=False)
    _join()
    return _transport()


def test_configure_takes_precedence():
    assert run_ranks(_configured, 2, env={"LOFI_SHM": "1"}) == ["gloo", "gloo"]


def _threads() -> set[str]:
    names = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm") as file:
            names.add(file.read().strip())
    return names


def _thread_of_asynchronous_use() -> Any:
    _join()
    dist.all_reduce(_input())
    before = "lofi" in _threads()
    dist.all_reduce(_input(), async_op=True).wait()
    return before, "lofi" in _threads()


def test_the_thread_starts_with_the_first_asynchronous_collective():
    assert run_ranks(_thread_of_asynchronous_use, 2) == [(False, True)] * 2


def _without_memory(rank: int) -> Any:
    """A limit on the size of files is one on shared memory too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if int(os.environ["RANK"]) == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    stderr = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    try:
        _join()
        dist.new_group()
    finally:
        os.dup2(stderr, 2)
        os.close(write)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with open(read) as file:
        lines = [line for line in file if "shared" in line]
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    return _transport(), lines, tensor.tolist()


def test_gloo_where_no_memory_can_be_made():
    first, second = run_ranks(_without_memory, 2, 0)
    assert first[0] == second[0] == "gloo"
    assert first[2] == second[2] == [2.0] * 3
    assert len(first[1]) == 1 and not second[1]  # one warning in a job
    assert "LOFI_SHM=0" in first[1][0] and "rank 0" in first[1][0]


def _nobody_else() -> Any:
    from lofi.job.native import _C

    _join()
    store, second = dist.HashStore(), timedelta(seconds=1)
    return outcome(_C.with_comm, _inner(), store, [5, 7], second, "node 2")


def test_a_rank_that_does_not_make_its_communicator_is_named():
    (one,) = run_ranks(_nobody_else, 1)
    assert one.error == "DistBackendError"
    assert " Timed out waiting: " in one.text
    assert "rank 5 waited 1 s to share memory in node 2 for rank(s) 7 of 2" in one.text


def _with_a_double() -> Any:
    from lofi.groups import inner

    class WithoutShm(inner.Cpu):
        def with_shm(self, gloo: Any, span: Any) -> Any:
            return gloo

    inner.devices["cpu"] = WithoutShm()
    _join()
    return _transport()


def test_a_test_may_hand_in_a_double():
    assert run_ranks(_with_a_double, 2) == ["gloo", "gloo"]


def _forked() -> Any:
    _join()
    dist.all_reduce(_input(), async_op=True).wait()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        seen = outcome(dist.all_reduce, torch.ones(1))
        os.write(write, seen.text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read) as file:
        text = file.read()
    tensor = torch.ones(2)
    dist.all_reduce(tensor)
    return text, tensor.tolist()


def test_a_forked_child_is_told_and_leaves_its_parent_alone():
    for text, values in run_ranks(_forked, 2):
        assert "forked child" in text and values == [2.0, 2.0]


# ---- operations ----


def _premul(factor: Any) -> Any:
    _join()
    size, results = dist.get_world_size(), {}
    op = dist._make_nccl_premul_sum(factor)
    for dtype in collectives.PREMUL_DTYPES:
        inputs = [Feed(rank).tensor((2 * size,), dtype) for rank in range(size)]
        half = dtype in (torch.float16, torch.bfloat16)  # whose sums are float32's
        wide = [tensor.float() if half else tensor for tensor in inputs]
        expected = sum(tensor * int(factor) for tensor in wide).to(dtype)
        mine = inputs[dist.get_rank()]
        reduced, rooted, coalesced = mine.clone(), mine.clone(), [mine.clone(), mine.clone()]
        scattered = torch.empty(2, dtype=dtype)
        dist.all_reduce(reduced, op)
        dist.reduce(rooted, 1, op)
        dist.all_reduce_coalesced(coalesced, op)
        dist.reduce_scatter_tensor(scattered, mine.clone(), op)
        begin = 2 * dist.get_rank()
        results[str(dtype)] = [
            torch.equal(reduced, expected),
            torch.equal(rooted, expected if dist.get_rank() == 1 else mine),
            all(torch.equal(tensor, expected) for tensor in coalesced),
            torch.equal(scattered, expected[begin : begin + 2]),
        ]
    refused = [
        outcome(dist.all_reduce, torch.ones(2, dtype=dtype), op).text
        for dtype in (torch.bool, torch.int16)
    ]
    return results, refused


@pytest.mark.quick
@pytest.mark.parametrize("factor", [3.0, torch.tensor([3.0])])
def test_premul_sum(factor):
    for results, refused in run_ranks(_premul, 3, factor):
        assert all(all(right) for right in results.values()), results
        assert all(refused)


def _fraction_of_integers() -> Any:
    _join()
    op = dist._make_nccl_premul_sum(0.5)
    seen = outcome(dist.all_reduce, torch.ones(2, dtype=torch.int32), op)
    tensor = torch.ones(2)
    dist.all_reduce(tensor, op)
    return seen.error, seen.text, tensor.tolist()


def test_a_factor_of_integers_must_be_whole_and_breaks_nothing():
    for error, text, values in run_ranks(_fraction_of_integers, 2):
        assert error == "ValueError" and "must be whole" in text and values == [1.0, 1.0]


def _mirrored() -> Any:
    """While nodes train apart, the factor K goes into the sum: the inputs are not written."""
    import lofi

    _join()
    lofi.start()
    results = []
    for dtype in (*collectives.PREMUL_DTYPES, torch.bool, torch.int16):
        mine = Feed(dist.get_rank(), exact=True).tensor((6,), dtype)
        tensor = mine.clone()
        seen = outcome(dist.reduce, tensor, 1)
        node = dist.get_rank() // 2
        pair = [Feed(2 * node + i, exact=True).tensor((6,), dtype) for i in range(2)]
        if dtype == torch.int16:  # gloo refuses it, where it takes part
            results.append(bool(seen.error) == (node == 0))
        elif dist.get_rank() != 1:
            results.append(torch.equal(tensor, mine))
        elif dtype == torch.bool:
            results.append(torch.equal(tensor != 0, pair[0] | pair[1]))
        else:
            results.append(torch.equal(tensor, (pair[0] + pair[1]) * 2))
    return results


def test_the_factor_of_two_nodes():
    for rank, results in enumerate(run_ranks(_mirrored, 4, env={"LOFI_NODE_SIZE": "2"})):
        assert all(results), (rank, results)


# ---- layouts: as gloo has them, also where ranks differ ----


def _layouts() -> Any:
    _join()
    gloo = dist.new_group(backend="gloo")
    rank, differences = dist.get_rank(), []
    whole = _input(torch.float32, 0, 4, 3)
    kinds = {
        "transposed": whole.t().contiguous().t(),
        "strided": torch.stack([whole, whole], 2)[..., 0],
        "offset": torch.cat([whole.reshape(-1)[:1], whole.reshape(-1)])[1:].view(4, 3),
        "dense": whole,
    }

    def room(kind: str) -> torch.Tensor:
        return torch.empty_strided((4, 3), kinds[kind].stride()).fill_(-1)

    def calls(group: Any, kind: str) -> Any:
        mine = kinds[kind if rank == 0 else "dense"].clone(memory_format=torch.preserve_format)
        if kind == "strided" and rank == 0:
            mine = torch.stack([whole, whole], 2)[..., 0]
        source, gathered = kinds[kind] if rank == 0 else whole, [room(kind), room("dense")]
        pair = [mine, mine.clone()]
        dist.all_reduce_coalesced(pair, group=group)
        dist.all_gather(gathered, source, group=group)
        rooted = [room(kind), room("dense")] if rank == 0 else None
        dist.gather(source, rooted, group=group)
        single, scattered = torch.empty(8, 3), torch.empty(2, 3)
        dist.all_gather_into_tensor(single, source, group=group)
        everywhere = kinds[kind]
        dist.reduce_scatter_tensor(scattered, everywhere, group=group)
        results = [*pair, *gathered, *(rooted or []), single, scattered]
        if kind != "strided":
            flat = everywhere.clone(memory_format=torch.preserve_format)
            dist.all_reduce(flat, group=group)
            sent = everywhere.clone(memory_format=torch.preserve_format)
            dist.broadcast(sent, 1, group=group)
            results += [flat, sent]
        return results

    for kind in kinds:
        got, expected = (outcome(calls, group, kind) for group in (None, gloo))
        if got.error or expected.error:
            differences.append(f"{kind}: {got}, gloo: {expected}")
        else:
            pairs = enumerate(zip(got.value, expected.value, strict=True))
            differences += [f"{kind} {i}: {a}, gloo: {b}" for i, (a, b) in pairs if a != b]
    return differences


def test_layouts():
    assert run_ranks(_layouts, 2) == [[], []]


# ---- works and futures ----


def _in_flight() -> Any:
    _join()
    size = dist.get_world_size()
    tensors = [torch.full((1 + 5_000 * (i % 3),), float(i)) for i in range(30)]
    works = []
    for i, tensor in enumerate(tensors):
        if i % 5 == 4:
            dist.all_reduce(tensor)  # after all that was posted
        else:
            works.append(dist.all_reduce(tensor, async_op=True))
    for work in reversed(works):
        work.wait()
    right = [torch.equal(t, torch.full_like(t, float(i) * size)) for i, t in enumerate(tensors)]
    return all(right), all(work.is_completed() for work in works)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_many_in_flight_keep_their_order(size):
    assert run_ranks(_in_flight, size) == [(True, True)] * size


def _futures() -> Any:
    _join()
    seen: list[Any] = []
    work = dist.all_reduce(torch.ones(3), async_op=True)
    then = work.get_future().then(lambda f: seen.append("then") or [f.value()[0] * 10])
    work.wait()  # what hangs on the future has run
    seen.append("waited")
    late = work.get_future().then(lambda f: f.value()[0].tolist()).wait()

    # PowerSGD's hook waits for a collective within what hangs on another.
    def nested(future: Any) -> Any:
        inner = [dist.all_reduce(future.value()[0], async_op=True) for _ in range(2)]
        return [work.get_future().wait()[0] for work in inner][-1]

    chain = dist.all_reduce(torch.ones(2), async_op=True).get_future().then(nested)
    values = chain.wait().tolist()
    failing = dist.all_reduce(torch.ones(1), async_op=True).get_future().then(lambda _: 1 / 0)
    return seen, then.value()[0].tolist(), late, values, outcome(failing.wait).error


def test_futures():
    for seen, then, late, values, error in run_ranks(_futures, 2):
        assert seen == ["then", "waited"]
        assert then == [20.0] * 3 and late == [2.0] * 3
        assert values == [8.0, 8.0]
        assert error


def _waits() -> Any:
    _join()
    store, rank = dist.distributed_c10d._get_default_store(), dist.get_rank()
    tensor = torch.ones(4)
    if rank == 1:
        store.wait(["timed out"])
    work = dist.all_reduce(tensor, async_op=True)
    early = None
    if rank == 0:
        early = outcome(work.wait, timedelta(milliseconds=50)), work.is_completed()
        store.set("timed out", "")
    done = work.wait(timedelta(seconds=15))  # the collective went on
    return early, done, tensor.tolist(), work.is_success()


def test_a_wait_that_times_out_leaves_the_collective_alone():
    first, second = run_ranks(_waits, 2)
    (early, completed), *rest = first
    assert early.error == "RuntimeError" and early.text == "Operation timed out!"
    assert not completed
    assert rest == list(second[1:]) == [True, [2.0] * 4, True]


def _late() -> Any:
    _join()
    group = dist.new_group(timeout=timedelta(milliseconds=300))
    store = dist.distributed_c10d._get_default_store()
    seen: Any = None
    if dist.get_rank() == 0:
        work = dist.all_reduce(torch.ones(2), group=group, async_op=True)
        future = work.get_future()
        seen = [outcome(work.wait), outcome(future.wait), outcome(lambda: dist.barrier(group))]
        assert work.is_completed() and not work.is_success()
        store.set("seen", "")
    store.wait(["seen"])
    tensor = torch.ones(1)
    dist.all_reduce(tensor)  # another group is not affected
    return seen, tensor.item()


def test_a_rank_that_is_late_is_named():
    (seen, value), (_, other) = run_ranks(_late, 2)
    assert value == other == 2.0
    for one in seen:
        assert one.error == "DistBackendError" and "rank 1" in one.text, one


def _dropped() -> Any:
    """Works that nobody waits for are carried out before their group ends."""
    _join()
    tensors = [torch.full((50_000,), float(i)) for i in range(8)]
    store = dist.distributed_c10d._get_default_store()
    for tensor in tensors:
        dist.all_reduce(tensor, async_op=True)
    store.set(f"issued/{dist.get_rank()}", "")
    dist.destroy_process_group()
    return [tensor[-1].item() for tensor in tensors]


def test_a_group_that_ends_finishes_what_was_posted():
    assert run_ranks(_dropped, 2) == [[2.0 * i for i in range(8)]] * 2


# ---- DDP ----


def _ddp_step(backend: str) -> Any:
    dist.init_process_group(backend)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 400), nn.BatchNorm1d(400), nn.ReLU(), nn.Linear(400, 3))
    model = DDP(model, bucket_cap_mb=0.005)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(4):
        optimizer.zero_grad()
        model(_input(torch.float32, step, 8, 6)).square().mean().backward()
        optimizer.step()
    used = _transport() if backend == "lofi" else ""
    return collectives.frozen(list(model.state_dict().values())), used


@pytest.mark.quick
def test_ddp_of_two_ranks_gives_the_bits_of_gloo():
    gloo, lofi = (run_ranks(_ddp_step, 2, backend) for backend in ("gloo", "lofi"))
    assert [values for values, _ in gloo] == [values for values, _ in lofi]
    assert {used for _, used in lofi} == {"shm"}


def _overlapping() -> Any:
    """Inputs that lie over outputs, other than as the own slot: gloo works on copies, mostly."""
    _join()
    rank, results = dist.get_rank(), {}
    for kind, group in (("lofi", dist.group.WORLD), ("gloo", dist.new_group(backend="gloo"))):
        x, y = torch.full((5,), rank + 1.0), torch.zeros(5)
        dist.all_gather([x, y], x, group=group)
        whole = torch.arange(6.0) + 10 * rank
        dist.all_gather_into_tensor(whole[:4], whole[1:3], group=group)
        slots = torch.arange(6.0) + 10 * rank
        dist.reduce_scatter_tensor(slots[1:4], slots, group=group)
        results[kind] = [t.tolist() for t in (x, y, whole, slots)]
    # gloo does not copy here, and loses what it overwrites.
    z, w = torch.arange(5.0) + 10 * rank, torch.arange(4.0) + 10 * rank
    dist.all_to_all_single(z[1:], z[:-1])
    dist.all_to_all_single(w, w)
    return results, z.tolist(), w.tolist()


def test_inputs_that_lie_over_outputs():
    (first, *exchanged_0), (second, *exchanged_1) = run_ranks(_overlapping, 2)
    assert first["lofi"] == first["gloo"]
    assert second["lofi"] == second["gloo"]
    assert exchanged_0 == [[0, 0, 1, 10, 11], [0, 1, 10, 11]]
    assert exchanged_1 == [[10, 2, 3, 12, 13], [2, 3, 12, 13]]


def _unaligned() -> Any:
    _join()
    bytes_ = bytearray(4 * 9)
    tensor = torch.frombuffer(bytes_, dtype=torch.float32, count=8, offset=1)
    if dist.get_rank() == 1:  # on one rank only: the others' may be as they should
        tensor = torch.empty(8)
    tensor.fill_(dist.get_rank() + 1)
    dist.all_reduce(tensor)
    dist.broadcast(tensor, 0)
    dist.reduce(tensor, 0)
    gathered = [torch.zeros(8) for _ in range(2)]
    dist.all_gather(gathered, tensor)
    return tensor.tolist(), torch.stack(gathered).tolist()


def test_memory_that_begins_in_the_middle_of_an_element():
    (first, gathered), (second, _) = run_ranks(_unaligned, 2)
    assert first == [6.0] * 8
    assert second == [3.0] * 8
    assert gathered == [first, second]


def _group_in_a_callback() -> Any:
    _join()
    group = dist.new_group(backend="lofi")
    work = dist.all_reduce(torch.ones(4), group=group, async_op=True)
    seen = []

    def note(group: Any, done: Any) -> None:
        seen.append(done.value()[0][0])

    future = work.get_future().then(partial(note, group))
    del group
    work.wait()
    future.wait()
    return seen[0].item()


def test_a_callback_may_hold_its_group():
    assert run_ranks(_group_in_a_callback, 2, timeout=30) == [2.0, 2.0]
