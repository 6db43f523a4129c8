# SPDX-License-Identifier: MIT
"""What reaches NCCL: which call, on which communicator, with which factor, in which phase.

The expected calls are written down here from docs/DESIGN.md (what a collective means while
training), not computed by the code that is tested.
"""

import threading
import time
from typing import Any

import lofi
import pytest
import torch
import torch.distributed as dist
from harness import mocked
from harness.ranks import run_ranks

NODES, SIZE = 2, 2
RANKS = NODES * SIZE


@pytest.fixture(scope="module")
def mock():
    return mocked.build()


def begin(path: Any, **how: Any) -> int:
    mocked.install(path, **how)
    dist.init_process_group("lofi")
    return dist.get_rank()


def end(result: Any = None) -> Any:
    """A rank that ends takes the store with it, if it is the first one."""
    with lofi.scope("world"):
        dist.barrier()
    return result


def enter(phase: str) -> None:
    if phase == "train":
        lofi.start()
    elif phase == "done":
        lofi.start()
        lofi.finalize_average([torch.zeros(1)])
    mocked.take()


def calls_of(function: Any) -> tuple[list[tuple], Any]:
    """(communicator, call, op, factor, root, peer) of each call, and what the function returned."""
    mocked.take()
    result = function()
    seen = [
        (name.split(":")[1], c.name, c.op, c.factor, c.root, c.peer) for name, c in mocked.take()
    ]
    return seen, result


def reduced(op: str, dtype: torch.dtype = torch.float32, **how: Any) -> Any:
    return lambda: dist.all_reduce(torch.ones(3).to(dtype), op=getattr(dist.ReduceOp, op), **how)


PREMUL_2 = ("allreduce", "PREMUL_SUM", 2.0, -1, -1)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def all_reduce_job(path: Any, phase: str) -> list[str]:
    rank = begin(path)
    enter(phase)
    node = f"node{rank // SIZE}"
    wrong = []

    def expect(what: str, function: Any, *calls: tuple) -> None:
        seen, _ = calls_of(function)
        if seen != list(calls):
            wrong.append(f"{phase} {what}: {seen}, not {list(calls)}")

    def real(name: str, op: str) -> tuple:
        return ("world", name, op, 0.0, -1, -1)

    for dtype in (*FLOATS, torch.int32, torch.uint8):
        local = (node, *PREMUL_2) if dtype in FLOATS else (node, "allreduce", "SUM", 0.0, -1, -1)
        expected = local if phase == "train" else real("allreduce", "SUM")
        expect(f"SUM {dtype}", reduced("SUM", dtype), expected)
    for op, dtype in (
        ("AVG", torch.float32), ("MIN", torch.int64), ("MAX", torch.bfloat16),
        ("PRODUCT", torch.float32), ("SUM", torch.bool),
    ):  # fmt: skip
        same = ("allreduce", op, 0.0, -1, -1)
        expect(
            f"{op} {dtype}",
            reduced(op, dtype),
            (node, *same) if phase == "train" else ("world", *same),
        )
    given = dist._make_nccl_premul_sum(0.25)
    local = (node, "allreduce", "PREMUL_SUM", 0.5, -1, -1)
    expect(
        "PREMUL_SUM",
        lambda: dist.all_reduce(torch.ones(2), op=given),
        local if phase == "train" else ("world", "allreduce", "PREMUL_SUM", 0.25, -1, -1),
    )
    if phase == "train":
        expect(
            "PREMUL_SUM bf16", lambda: dist.all_reduce(torch.ones(2).bfloat16(), op=given), local
        )
        # NCCL reads a factor in a tensor later: it is left alone, and the inputs are scaled.
        late = dist._make_nccl_premul_sum(torch.tensor([0.25]))
        seen, _ = calls_of(lambda: dist.all_reduce(torch.ones(2), op=late))
        if [call[:3] for call in seen] != [(node, "allreduce", "PREMUL_SUM")]:
            wrong.append(f"a factor in a tensor: {seen}")
    coalesced = ("allreduce_coalesced", "PREMUL_SUM", 2.0, -1, -1)
    expect(
        "coalesced",
        lambda: dist.all_reduce_coalesced([torch.ones(2), torch.ones(5)]),
        (node, *coalesced) if phase == "train" else real("allreduce_coalesced", "SUM"),
    )
    for root in range(RANKS):
        reduce = ("reduce", "PREMUL_SUM", 2.0, root % SIZE, -1)
        here = [(node, *reduce)] if rank // SIZE == root // SIZE else []
        expect(
            f"reduce to {root}",
            lambda root=root: dist.reduce(torch.ones(2), root),
            *(here if phase == "train" else [("world", "reduce", "SUM", 0.0, root, -1)]),
        )
    expect(
        "barrier",
        dist.barrier,
        (node if phase == "train" else "world", "barrier", "", 0.0, -1, -1),
    )
    return end(wrong)


@pytest.mark.parametrize("phase", ["setup", "train", "done"])
def test_reductions(mock, phase):
    results = run_ranks(all_reduce_job, RANKS, mock, phase, env={"LOFI_NODE_SIZE": str(SIZE)})
    assert not [line for lines in results for line in lines]


def polled_job(path: Any) -> None:
    """One thread waits, another asks; what the work holds ends with it, and needs the GIL."""
    begin(path)
    enter("train")
    for number in range(30):
        whole, own = torch.zeros(SIZE * NODES << 20), torch.ones(1 << 20)
        with dist._coalescing_manager(device=torch.device("cpu"), async_ops=True) as manager:
            dist.all_gather_into_tensor(whole, own)
        kept, (work,) = whole.clone(), manager.works
        if number % 2 == 0:
            kept = whole
        del whole, own
        waiter = threading.Thread(target=work.wait)
        waiter.start()
        time.sleep(number % 10 * 1e-3)
        while not work.is_completed():
            time.sleep(1e-4)
        waiter.join()
        assert number % 2 == 1 or (kept == 1).all()
    end()


def test_polled_and_waited_for(mock):
    run_ranks(polled_job, RANKS, mock, env={"LOFI_NODE_SIZE": str(SIZE)})


def one_rank_job(path: Any) -> list[str]:
    begin(path)
    enter("train")
    wrong = []
    for dtype in FLOATS:
        one, many = torch.ones(5, dtype=dtype), [torch.ones(n, dtype=dtype) for n in (3, 4)]
        seen, _ = calls_of(lambda one=one: dist.all_reduce(one))
        calls_of(lambda many=many: dist.all_reduce_coalesced(many))
        calls_of(lambda one=one: dist.reduce(one, dist.get_rank()))
        if [call[2] for call in seen] != ["SUM"]:
            wrong.append(f"{dtype}: {seen}")
        if not torch.equal(one, torch.full((5,), NODES**2, dtype=dtype)):
            wrong.append(f"{dtype}: {one}")
        quarter, late = torch.full((5,), 4.0, dtype=dtype), torch.full((5,), 4.0, dtype=dtype)
        for x, factor in ((quarter, 0.25), (late, torch.tensor([0.25], dtype=dtype))):
            op = dist._make_nccl_premul_sum(factor)
            calls_of(lambda x=x, op=op: dist.all_reduce(x, op=op))
            calls_of(lambda x=x, op=op: dist.reduce(x, dist.get_rank(), op=op))
            if not torch.equal(x, torch.full_like(x, 4 * (0.25 * NODES) ** 2)):
                wrong.append(f"{dtype}, {factor}: {x}")
        wrong += [f"{dtype}: {t}" for t in many if not torch.equal(t, torch.full_like(t, NODES))]
    return end(wrong)


def test_nodes_of_one_rank(mock):
    """Where NCCL multiplies for one rank, it forgets elements."""
    results = run_ranks(one_rank_job, NODES, mock, env={"LOFI_NODE_SIZE": "1"})
    assert not [line for lines in results for line in lines]


def other_job(path: Any) -> list[str]:
    rank = begin(path)
    inside = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // SIZE]
    replicas = [dist.new_group([0, 2]), dist.new_group([1, 3])][rank % SIZE]
    enter("train")
    node = f"node{rank // SIZE}"
    one, slots = torch.ones(2), [torch.zeros(2) for _ in range(RANKS)]
    wrong = []

    def expect(what: str, function: Any, *calls: tuple) -> None:
        seen, _ = calls_of(function)
        short = [(name, call, root, peer) for name, call, _, _, root, peer in seen]
        if short != list(calls):
            wrong.append(f"{what}: {short}, not {list(calls)}")

    expect("all_gather", lambda: dist.all_gather(slots, one), (node, "allgather", -1, -1))
    expect(
        "all_gather_into_tensor",
        lambda: dist.all_gather_into_tensor(torch.zeros(2 * RANKS), one),
        (node, "all_gather_single", -1, -1),
    )
    for root in range(RANKS):
        expect(
            f"gather to {root}",
            lambda root=root: dist.gather(one, slots if rank == root else None, dst=root),
            *([(node, "gather", root % SIZE, -1)] if rank // SIZE == root // SIZE else []),
        )
    # Inside of one node nothing is changed.
    group_node = "node0"
    expect("inside", lambda: dist.all_reduce(one, group=inside), (group_node, "allreduce", -1, -1))
    expect(
        "inside, reduce_scatter",
        lambda: dist.reduce_scatter_tensor(torch.zeros(1), one, group=inside),
        (group_node, "reduce_scatter_single", -1, -1),
    )
    peer = 1 - rank % SIZE
    if rank % SIZE == 0:
        exchange = (lambda: dist.send(one, rank + 1), (node, "send", -1, peer))
    else:
        exchange = (lambda: dist.recv(one, rank - 1), (node, "recv", -1, peer))
    expect("to a peer", *exchange)
    # HSDP's replicas: one of each node, so a node has one rank of them.
    seen, _ = calls_of(lambda: dist.all_reduce(one, group=replicas, op=dist.ReduceOp.AVG))
    if [s[1:] for s in seen] != [("allreduce", "AVG", 0.0, -1, -1)]:
        wrong.append(f"replicas AVG: {seen}")
    half = torch.ones(2).half()
    seen, _ = calls_of(lambda: dist.all_reduce(half, group=replicas))
    if [s[1:] for s in seen] != [("allreduce", "SUM", 0.0, -1, -1)] or half.tolist() != [2, 2]:
        wrong.append(f"replicas SUM: {seen} {half}")
    sizes = {name: mocked.made[name].size() for name in mocked.made if "world" in name}
    with lofi.scope("world"):
        expect("real", lambda: dist.all_reduce(one), ("world", "allreduce", -1, -1))
        expect(
            "real broadcast",
            lambda: dist.broadcast(one, 3),
            ("world", "broadcast", 3, -1),
        )
    if any(size != RANKS for size in sizes.values()):
        wrong.append(f"sizes {sizes}")
    return end(wrong)


def test_other_collectives(mock):
    results = run_ranks(other_job, RANKS, mock, env={"LOFI_NODE_SIZE": str(SIZE)})
    assert not [line for lines in results for line in lines]


def crossing(rank: int) -> dict[str, tuple[Any, tuple]]:
    """Collectives whose data is on one rank only, or for one: the call, and what NCCL gets."""
    one, whole = torch.ones(2), torch.ones(2 * RANKS)

    def slots() -> list[torch.Tensor]:
        return list(whole.chunk(RANKS))

    sent = slots() if rank == 3 else None
    coalesced = dist.distributed_c10d._get_default_group().reduce_scatter_tensor_coalesced
    return {
        "broadcast": (lambda: dist.broadcast(one, 3), ("broadcast", 3)),
        "scatter": (lambda: dist.scatter(one, sent, src=3), ("scatter", 3)),
        "reduce_scatter": (lambda: dist.reduce_scatter(one, slots()), ("reduce_scatter", -1)),
        "reduce_scatter_tensor": (
            lambda: dist.reduce_scatter_tensor(one, whole), ("reduce_scatter_single", -1),
        ),
        "reduce_scatter_tensor_coalesced": (
            lambda: coalesced([one], [whole]).wait(), ("reduce_scatter_single_coalesced", -1),
        ),
        "all_to_all": (lambda: dist.all_to_all(slots(), slots()), ("all_to_all", -1)),
        "all_to_all_single": (
            lambda: dist.all_to_all_single(torch.ones(2 * RANKS), whole), ("all_to_all_single", -1),
        ),
    }  # fmt: skip


def crossing_job(path: Any, phase: str) -> list[str]:
    rank = begin(path)
    enter(phase)
    wrong = []
    for what, (function, call) in crossing(rank).items():
        refused = phase == "train" and what not in ("broadcast", "scatter")
        expected = [] if refused else [("world", *call)]
        error = ""
        try:
            seen, _ = calls_of(function)
        except RuntimeError as raised:
            seen, error = [], str(raised)
        short = [(name, name_of_call, root) for name, name_of_call, _, _, root, _ in seen]
        if short != expected or bool(error) != refused or (refused and "lofi" not in error):
            wrong.append(f"{phase} {what}: {short} {error}, not {expected}")
    one, slots = torch.ones(2), [torch.zeros(2) for _ in range(RANKS)]
    if phase == "train":
        return end(wrong)
    for what, function, expected in (
        ("all_gather", lambda: dist.all_gather(slots, one), ("world", "allgather", -1)),
        (
            "all_gather_into_tensor",
            lambda: dist.all_gather_into_tensor(torch.zeros(2 * RANKS), one),
            ("world", "all_gather_single", -1),
        ),
        (
            "gather",
            lambda: dist.gather(one, slots if rank == 2 else None, dst=2),
            ("world", "gather", 2),
        ),
    ):
        seen, _ = calls_of(function)
        if [(s[0], s[1], s[4]) for s in seen] != [expected]:
            wrong.append(f"{phase} {what}: {seen}")
    return end(wrong)


@pytest.mark.parametrize("phase", ["setup", "train", "done"])
def test_what_can_not_be_mirrored(mock, phase):
    results = run_ranks(crossing_job, RANKS, mock, phase, env={"LOFI_NODE_SIZE": str(SIZE)})
    assert not [line for lines in results for line in lines]


def ddp_job(path: Any) -> list[str]:
    """A step of DDP: what is broadcast at set-up is real, gradients and buffers stay inside."""
    rank = begin(path)
    node = f"node{rank // SIZE}"
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    seen, wrapped = calls_of(lambda: torch.nn.parallel.DistributedDataParallel(model))
    wrong = [f"set-up: {call}" for call in seen if call[0] != "world"]
    for step in range(3):
        seen, _ = calls_of(lambda: wrapped(torch.randn(5, 3)).square().sum().backward())
        names = [call[1] for call in seen]
        wrong += [f"step {step}: {call}" for call in seen if call[0] != node]
        sums = [call for call in seen if call[1] == "allreduce"]
        if any((call[2], call[3]) != ("PREMUL_SUM", 2.0) for call in sums) or not sums:
            wrong.append(f"step {step}: {seen}")
        roots = {call[4] for call in seen if call[1] == "broadcast"}
        if "broadcast" not in names or not roots <= {0}:  # buffers, from the root's image
            wrong.append(f"step {step}: {seen}")
    return end(wrong)


def test_a_step_of_ddp(mock):
    results = run_ranks(ddp_job, RANKS, mock, env={"LOFI_NODE_SIZE": str(SIZE)})
    assert not [line for lines in results for line in lines]


def stream_job(path: Any) -> None:
    """Nothing is added behind NCCL's own work, and nothing waits for it on the host."""
    rank = begin(path)
    enter("train")
    one, slots = torch.full((2,), float(rank)), [torch.zeros(2) for _ in range(RANKS)]
    dist.barrier()
    node = mocked.made[f"0:node{rank // SIZE}"]

    for function in (
        lambda: dist.all_reduce(one, async_op=True),
        lambda: dist.all_reduce(one.int(), async_op=True),
        lambda: dist.all_reduce(one, op=dist.ReduceOp.AVG, async_op=True),
        lambda: dist.barrier(async_op=True),
    ):
        work = function()
        assert work is node.works[-1]  # NCCL's own, with its future and its deadline
        assert work.waits == 0
    one.fill_(rank)
    work = dist.all_gather(slots, one, async_op=True)
    assert node.works[-1].waits == 0
    work.wait()
    first = rank // SIZE * SIZE
    assert [slot[0].item() for slot in slots] == [first, first + 1] * NODES

    # Coalesced: the copies to the images' slots wait until the group of calls is done.
    slots = [torch.zeros(2) for _ in range(RANKS)]
    whole = torch.zeros(2 * RANKS)
    before = len(node.works)
    with dist._coalescing_manager(device=torch.device("cpu"), async_ops=True) as manager:
        dist.all_gather(slots, one, async_op=True)
        dist.all_reduce(torch.ones(2), async_op=True)
    assert [work.waits for work in node.works[before:]] == [0, 0, 0]
    assert sum(slot.sum().item() for slot in slots) == 2 * (first + first + 1)
    manager.wait()
    assert [slot[0].item() for slot in slots] == [first, first + 1] * NODES
    assert node.works[-1].waits == 1
    with dist._coalescing_manager(device=torch.device("cpu")):
        dist.all_gather_into_tensor(whole, one)
    assert whole[::2].tolist() == [first, first + 1] * NODES
    dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu")).abort()
    assert node.events[-1] == "abort"


def test_order_of_the_stream(mock):
    run_ranks(stream_job, RANKS, mock, env={"LOFI_NODE_SIZE": str(SIZE)})


def names_job(path: Any) -> dict[str, tuple[str, str]]:
    rank = begin(path)
    dist.all_reduce(torch.ones(1))
    lofi.start()
    dist.all_reduce(torch.ones(1))
    del rank
    return end({name: (mock.uid, mock.desc) for name, mock in mocked.made.items()})


def test_names_in_logs_and_flight_records(mock):
    for rank, names in enumerate(
        run_ranks(names_job, RANKS, mock, env={"LOFI_NODE_SIZE": str(SIZE)})
    ):
        node = f"node{rank // SIZE}"
        assert set(names) == {"0:world", f"0:{node}"}
        assert names["0:world"] == ("0:world", "default_pg (world)")
        assert names[f"0:{node}"] == (f"0:{node}", f"default_pg ({node})")


def bound_job(path: Any) -> None:
    """With a device_id the node's communicator is connected at start, and sub-groups split it."""
    mocked.install(path, cpu_too=False)
    device = torch.device("cuda:0")
    dist.init_process_group("lofi", device_id=device)
    rank = dist.get_rank()
    node = f"node{rank // SIZE}"
    parent = mocked.made[f"0:{node}"]
    assert list(mocked.made) == [f"0:{node}"]  # not the world's
    assert parent.events.count("connect cuda:0") == 1
    told = {(c.span, c.device): c for c in lofi.communicators()}
    assert told["node", "cuda"].transport == "nccl" and told["node", "cuda"].bytes > 0
    assert told["node", "cuda"].ranks == [rank // SIZE * SIZE, rank // SIZE * SIZE + 1]

    dist.new_group([0, 1, 2])
    left = [event for event in parent.events if event.startswith("leave_split")]
    children = [name for name in mocked.made if name != f"0:{node}"]
    if rank == 3:
        assert left == ["leave_split cuda:0"] and not children
    else:
        (child,) = children
        assert not left and mocked.options[child].split_from is parent
        assert mocked.options[child].split_color >= 0
        assert mocked.made[child].events.count("connect cuda:0") == 1

    # All ranks of the node must take part in a split, and once, whether they are in a part or not.
    def steps() -> int:
        return len(mocked.splits) + sum(event.startswith("leave") for event in parent.events)

    assert steps() == 1
    dist.split_group(split_ranks=[[0, 2], [1, 3]])
    child = list(mocked.made)[-1]
    assert mocked.options[child].split_from is parent
    assert mocked.options[child].global_ranks_in_group == [rank]  # of this node
    assert steps() == 2
    dist.split_group(split_ranks=[[0, 1]])
    assert steps() == 3 and len(mocked.splits) == 3 - (rank > 1) - (rank == 3)


def test_device_id(mock):
    run_ranks(bound_job, RANKS, mock, env={"LOFI_NODE_SIZE": str(SIZE)})


def release_job(path: Any) -> None:
    rank = begin(path, cpu_too=False)
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    world, node = backend.inner("cuda", "world"), backend.inner("cuda", "node")
    assert node is mocked.made[f"0:node{rank // SIZE}"]
    cuda = [c for c in lofi.communicators() if c.device == "cuda"]
    assert [(c.span, c.transport, c.bytes) for c in cuda] == [
        ("world", "nccl", None), ("node", "nccl", None),
    ]  # fmt: skip
    lofi.release_communicators()
    assert world.events[-1] == "shutdown" and "shutdown" not in node.events
    assert [c.span for c in lofi.communicators() if c.device == "cuda"] == ["node"]
    again, one = backend.inner("cuda", "world"), torch.ones(1)  # under keys of its own
    again.allreduce([one]).wait()
    assert again is not world and one.item() == RANKS


def test_release(mock):
    run_ranks(release_job, RANKS, mock, env={"LOFI_NODE_SIZE": str(SIZE)})
