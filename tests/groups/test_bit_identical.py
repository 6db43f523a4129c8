# SPDX-License-Identifier: MIT
"""Each node trains to the bits that its ranks reach alone.

A case runs twice: with backend lofi on K nodes of L ranks, and with plain gloo on each node's L
ranks, in processes that never load lofi's hooks. (Of three ranks and more, shared memory adds in
another order than gloo: then the run alone has backend lofi too, with one node.) Data depends on
the global rank and the step. The ranks start with weights of their own, which DDP's broadcast makes
equal; the run alone loads what the lofi run began with. Weights and buffers after the steps, and
what a case measured on the way, must be equal to the bit; nodes must differ, and nothing may have
crossed between them.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.ranks import run_ranks
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel as DDP

STEPS = 20
BATCH = 6
WIDTH = 8
State = dict[str, torch.Tensor]


# ---- models --------------------------------------------------------------------------------------


def mlp(depth: int = 1) -> nn.Module:
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), nn.Tanh())]
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), *hidden, nn.Linear(16, 4))


class OwnForward(nn.Module):
    """torch.compile captures a forward of the user's, not Sequential's."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, width)
        )

    def forward(self, x):
        return self.layers(self.norm(x)) * 2


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


class Counting(nn.Module):
    """Its integer buffers depend on the data, and change what it computes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, 4)
        self.register_buffer("positive", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(WIDTH, dtype=torch.int32))

    def forward(self, x):
        out = self.linear(x) * (1 + (self.positive % 7) * 0.1) + self.last.sum() * 0.01
        self.positive += (x > 0).sum()
        self.last.copy_((x[0] * 4).to(torch.int32))
        return out


class Branches(nn.Module):
    """Which branch a forward takes depends on the data; the third is never taken."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(WIDTH, 4) for _ in range(3))

    def forward(self, x):
        return self.branches[int(x[0, 0] > 0)](x)


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8, sparse=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.table((x * 5).to(torch.int64).abs() % 20).mean(1))


# ---- training ------------------------------------------------------------------------------------


@dataclass
class Rank:
    """What a training function is given."""

    number: int  # in the world of all nodes, also in the run alone
    node_size: int
    model: DDP
    dtype: torch.dtype

    def inputs(self, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * self.number + step)
        return torch.randn(BATCH, WIDTH, generator=generator).to(self.dtype)

    def start(self) -> None:
        if dist.get_backend() == "lofi":
            import lofi

            lofi.start()

    def optimizer(self, momentum: float = 0.9, lr: float = 0.05) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum)


def loss_of(out: torch.Tensor) -> torch.Tensor:
    return (out.float() - 1).pow(2).mean()


def train(
    rank: Rank,
    momentum: float = 0.9,
    steps: int = STEPS,
    model: Any = None,
    loss_scale: float = 1.0,
) -> State:
    optimizer = rank.optimizer(momentum, 0.05 / loss_scale)
    for step in range(steps):
        optimizer.zero_grad()
        out = (rank.model if model is None else model)(rank.inputs(step))
        (loss_of(out) * loss_scale).backward()
        optimizer.step()
    return {}


def train_sparse(rank: Rank) -> State:
    return train(rank, momentum=0.0)


def train_several_buckets(rank: Rank) -> State:
    train(rank)
    sizes = rank.model._get_ddp_logging_data()["rebuilt_bucket_sizes"]
    assert len(sizes.split(",")) > 2, sizes
    return {}


def train_accumulating(rank: Rank) -> State:
    optimizer = rank.optimizer()
    for step in range(STEPS):
        synchronises = step % 3 == 2
        with contextlib.nullcontext() if synchronises else rank.model.no_sync():
            loss_of(rank.model(rank.inputs(step))).backward()
        if synchronises:
            optimizer.step()
            optimizer.zero_grad()
    return {}


def train_uneven(rank: Rank, by_initial_size: bool, steps_of: Callable[[int], int]) -> State:
    with rank.model.join(divide_by_initial_world_size=by_initial_size):
        return train(rank, steps=steps_of(rank.number))


def scaled(rank: Rank) -> State:
    """As with a GradScaler: no gradient is so small that fp16 rounds it when DDP divides it."""
    return train(rank, loss_scale=4096.0)


def with_hook(hook: Any, state: Any = None, train: Any = train) -> Callable[[Rank], State]:
    def train_with_hook(rank: Rank) -> State:
        rank.model.register_comm_hook(state() if state else None, hook)
        return train(rank)

    return train_with_hook


def user_hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Two collectives, one behind the other's future, on a copy and on the bucket."""
    largest = bucket.buffer().abs().max().reshape(1)
    tensor = bucket.buffer().div_(dist.get_world_size())
    clip = dist.all_reduce(largest, dist.ReduceOp.MAX, async_op=True).get_future()
    total = dist.all_reduce(tensor, async_op=True).get_future()

    def finish(done):
        maximum, summed = (future.value()[0] for future in done.value())
        return summed / (1 + maximum)

    return torch.futures.collect_all([clip, total]).then(finish)


def power_sgd_state() -> Any:
    return powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=2, start_powerSGD_iter=4, min_compression_rate=0.1
    )


def train_fused_optimizer(rank: Rank) -> State:
    rank.model._register_fused_optim(torch.optim.SGD, lr=0.05)
    for step in range(STEPS):
        loss_of(rank.model(rank.inputs(step))).backward()
    return {}


def train_as_trainer(rank: Rank) -> State:
    """The loss divided by all ranks' tokens and multiplied by the world size; logs and averages."""
    rank.start()  # tokens are counted before the first forward
    optimizer = torch.optim.AdamW(rank.model.parameters(), lr=0.01)
    world_size, logs, counted = dist.get_world_size(), [], []
    first = rank.number // rank.node_size * rank.node_size % world_size
    own = slice(first, first + rank.node_size)  # the node's part of what is gathered
    for step in range(STEPS):
        tokens = torch.tensor([5 + (3 * rank.number + step) % 4])
        gathered = torch.empty(world_size, dtype=tokens.dtype)
        dist.all_gather_into_tensor(gathered, tokens)
        counted.append(gathered[own])
        optimizer.zero_grad()
        loss = (rank.model(rank.inputs(step)) - 1).pow(2).sum() / gathered.sum() * world_size
        loss.backward()
        optimizer.step()
        losses = [torch.empty(()) for _ in range(world_size)]
        dist.all_gather(losses, loss.detach())
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        logs += [*losses[own], mean / world_size]
    counts = torch.tensor([rank.number, STEPS], dtype=torch.float64)
    dist.barrier()
    dist.all_reduce(counts)  # DeiT's meters
    return {
        "tokens": torch.stack(counted),
        "logs": torch.stack(logs),
        "ratio": counts[0] / counts[1],
    }


def train_compiled(rank: Rank) -> State:
    counters = torch._dynamo.utils.counters
    counters.clear()
    torch._dynamo.reset()
    train(rank, model=torch.compile(rank.model, backend="aot_eager"))
    return seen_by_dynamo()


def train_in_compiled_function(rank: Rank) -> State:
    torch._dynamo.utils.counters.clear()
    torch._dynamo.reset()
    train(rank, model=torch.compile(lambda x: rank.model(x * 2).sin(), backend="aot_eager"))
    return seen_by_dynamo()


def train_with_python_reducer(rank: Rank) -> State:
    """DDP's own collectives are then functional ones, inside the compiled graphs."""
    torch._dynamo.utils.counters.clear()
    torch._dynamo.reset()
    model = torch.compile(rank.model, backend="aot_eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        train(rank, model=model)
    return seen_by_dynamo()


def seen_by_dynamo() -> dict[str, Any]:
    """How much was compiled, and the reasons of what was not, without addresses."""
    counters = torch._dynamo.utils.counters
    reasons = {reason.split("Developer debug context")[0] for reason in counters["graph_break"]}
    return {"compiled": dict(counters["stats"]), "breaks": reasons}


# ---- cases ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module] = mlp
    train: Callable[[Rank], State] = train
    ddp: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    tolerance: float = 0.0


def uneven(by_initial_size: bool) -> Callable[[Rank], State]:
    return lambda rank: train_uneven(rank, by_initial_size, lambda r: STEPS - 7 * r % 5)


def uneven_with_an_empty_rank(rank: Rank) -> State:
    return train_uneven(rank, True, lambda r: 0 if r % rank.node_size == 1 else STEPS)


CASES = {
    "plain": Case(),
    "accumulation": Case(train=train_accumulating),
    "batch norm": Case(batch_norm),
    "batch norm, buffers apart": Case(batch_norm, ddp={"broadcast_buffers": False}),
    "int buffers": Case(Counting),
    "int buffers apart": Case(Counting, ddp={"broadcast_buffers": False}),
    "unused parameters": Case(Branches, ddp={"find_unused_parameters": True}),
    "static graph": Case(ddp={"static_graph": True}),
    "uneven, initial size": Case(train=uneven(True)),
    "uneven, present size": Case(batch_norm, train=uneven(False)),
    "uneven, unused": Case(Branches, train=uneven(True), ddp={"find_unused_parameters": True}),
    "uneven, a rank without data": Case(train=uneven_with_an_empty_rank),
    "bf16 hook": Case(train=with_hook(default_hooks.bf16_compress_hook)),
    "fp16 hook": Case(train=with_hook(default_hooks.fp16_compress_hook, train=scaled)),
    "fp16 hook, tiny gradients": Case(
        train=with_hook(default_hooks.fp16_compress_hook), tolerance=2e-5
    ),
    "user hook": Case(train=with_hook(user_hook)),
    "PowerSGD": Case(lambda: mlp(2), train=with_hook(powerSGD_hook.powerSGD_hook, power_sgd_state)),
    "several buckets": Case(
        lambda: mlp(4), train=train_several_buckets, ddp={"bucket_cap_mb": 0.002}
    ),
    "bucket views": Case(lambda: mlp(2), ddp={"gradient_as_bucket_view": True}),
    "fused optimizer": Case(train=train_fused_optimizer),
    "sparse": Case(Embedding, train=train_sparse),
    "bf16": Case(dtype=torch.bfloat16),
    "fp16": Case(dtype=torch.float16, train=scaled),
    "fp16, tiny gradients": Case(dtype=torch.float16, tolerance=1e-3),
    "trainer": Case(train=train_as_trainer),
}
FEW = ("plain", "batch norm", "uneven, present size", "unused parameters", "trainer", "bf16")


# ---- running -------------------------------------------------------------------------------------


def snapshot(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def run_case(case: Case, number: int, node_size: int, initial: State | None) -> Any:
    torch.manual_seed(number)
    module = case.build().to(case.dtype)
    if initial is not None:
        module.load_state_dict(initial)
    model = DDP(module, **case.ddp)
    begin = snapshot(module)
    measured = case.train(Rank(number, node_size, model, case.dtype))
    return begin, snapshot(module), measured


@contextlib.contextmanager
def store_of_job():
    """One store for all groups of a job; its host, rank 0, leaves last."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    port = int(os.environ["MASTER_PORT"])
    store = dist.TCPStore("127.0.0.1", port, is_master=rank == 0, timeout=timedelta(seconds=30))
    yield store
    store.set(f"bye/{rank}", "")
    if rank == 0:
        store.wait([f"bye/{other}" for other in range(world_size)])


keep_alive: list[Any] = []


@contextlib.contextmanager
def group(backend: str, store: dist.Store, rank: int, world_size: int):
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=20)
    )
    # A comm hook's callback may hold the last reference to a gloo group on a thread of gloo's, that
    # the group's end joins: the process dies of "Resource deadlock avoided". So none ends early.
    keep_alive.append(dist.group.WORLD)
    yield
    # A rank that leaves closes its connections, which others may still read from.
    store.set(f"left/{rank}", "")
    store.wait([f"left/{other}" for other in range(world_size)])
    dist.destroy_process_group()


def run_with_lofi(cases: dict[str, Case], node_size: int) -> dict[str, Any]:
    import lofi

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.set_debug_level_from_env()
    results = {}
    with store_of_job() as store:
        for name, case in cases.items():
            with group("lofi", dist.PrefixStore(name, store), rank, world_size):
                results[name] = (*run_case(case, rank, node_size, None), lofi.stats())
    return results


def run_alone(
    cases: dict[str, Case], node_size: int, initial: dict[str, State], backend: str
) -> dict[str, Any]:
    rank = int(os.environ["RANK"])
    node, place = divmod(rank, node_size)
    results = {}
    with store_of_job() as store:
        for name, case in cases.items():
            own = dist.PrefixStore(f"{name}/{node}", store)
            with group(backend, own, place, node_size):
                results[name] = run_case(case, rank, node_size, initial[name])
    assert backend == "lofi" or "lofi.hooks" not in sys.modules
    return results


def equal(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, set):
        return a <= b  # reasons not to compile: lofi must add none
    if not isinstance(a, torch.Tensor):
        return a == b
    if tolerance and a.is_floating_point():
        return bool((a.double() - b.double()).abs().max() <= tolerance)
    return a.dtype == b.dtype and torch.equal(a, b)


def differences(a: State, b: State, tolerance: float = 0.0) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not equal(a[name], b[name], tolerance)]


def check_case(name: str, with_lofi: list[Any], alone: list[Any], tolerance: float, node_size: int):
    for rank, (lofi_run, alone_run) in enumerate(zip(with_lofi, alone, strict=True)):
        begin, end, measured, stats = lofi_run
        where = f"{name}, rank {rank}"
        assert not differences(begin, with_lofi[0][0]), f"{where}: starts from other weights"
        assert differences(begin, end), f"{where}: did not train"
        assert not differences(end, alone_run[1], tolerance), where
        assert not differences(measured, alone_run[2], tolerance), where
        other = with_lofi[(rank + node_size) % len(with_lofi)]
        assert differences(end, other[1]), f"{where}: the same as in the next node"
        assert stats["phase"] == "train"
        assert stats["cross_bytes"]["training"] == 0, where
        assert stats["collectives"]["world"]["training"] == 0, where
        assert stats["collectives"]["node"]["training"] >= STEPS // 3, where


def check(
    cases: dict[str, Case],
    nodes: int,
    node_size: int,
    env: dict[str, str] | None = None,
    tolerance: float = 0.0,
) -> None:
    size = nodes * node_size
    lofi_env = {"LOFI_NODE_SIZE": str(node_size), **(env or {})}
    with_lofi = run_ranks(run_with_lofi, size, cases, node_size, env=lofi_env)
    initial = {name: with_lofi[0][name][0] for name in cases}
    backend = "lofi" if node_size > 2 and lofi_env.get("LOFI_SHM") != "0" else "gloo"
    alone_env = {"LOFI_NODE_SIZE": str(node_size)}
    alone = run_ranks(run_alone, size, cases, node_size, initial, backend, env=alone_env)
    for name, case in cases.items():
        check_case(
            name,
            [result[name] for result in with_lofi],
            [result[name] for result in alone],
            max(tolerance, case.tolerance),
            node_size,
        )


def few() -> dict[str, Case]:
    return {name: CASES[name] for name in FEW}


def test_every_case_on_2_nodes_of_2():
    check(CASES, 2, 2)


@pytest.mark.parametrize(
    ("nodes", "node_size", "shm"), [(4, 1, "1"), (4, 2, "1"), (2, 3, "1"), (2, 3, "0")]
)
def test_other_sizes(nodes, node_size, shm):
    check(few(), nodes, node_size, env={"LOFI_SHM": shm})


def test_every_case_over_gloo():
    check(CASES, 2, 2, env={"LOFI_SHM": "0"})


def test_3_nodes_to_rounding():
    cases = {name: case for name, case in few().items() if name != "bf16"}
    check(cases, 3, 2, tolerance=1e-6)


def test_torch_distributed_debug_detail():
    cases = {name: CASES[name] for name in ("plain", "batch norm", "unused parameters", "trainer")}
    check(cases, 2, 2, env={"TORCH_DISTRIBUTED_DEBUG": "DETAIL"})


@pytest.fixture
def compilers():
    """Imported here once (seconds), not in every rank."""
    import functorch.compile  # noqa: F401
    import torch._inductor.compile_fx  # noqa: F401


def test_compiled(compilers):
    wide = partial(OwnForward, 512)  # two graphs: torch.compile's buckets are 1 MiB or more
    cases = {
        "several buckets": Case(wide, train_compiled, {"bucket_cap_mb": 1}),
        "in a compiled function": Case(OwnForward, train_in_compiled_function),
    }
    check(cases, 2, 2)


@pytest.mark.slow
def test_python_reducer(compilers):
    # Its own patch: monkeypatch would leave the configuration without the entry.
    with torch._dynamo.config.patch(optimize_ddp="python_reducer"):
        check({"python reducer": Case(OwnForward, train_with_python_reducer)}, 2, 2)
