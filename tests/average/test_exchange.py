# SPDX-License-Identifier: MIT
"""Both executors of the exchange, against the exact mean: lofi_exchange of liblofi on communicators
in shared memory, and the one over the process groups. Members, givers, weights, sizes, dtypes,
chunks and bases are random; both give the same bits."""

import ctypes
import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness import truth
from harness.liblofi import Liblofi
from harness.ranks import run_ranks

DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


@dataclass
class Case:
    """One exchange; the same on all ranks."""

    members: list[int]  # nodes that take part, in order
    gives: list[bool]  # of these
    weights: list[float]
    dtype: torch.dtype
    sizes: list[int]  # of the tensors of the row
    is_shard: bool
    alpha: float  # < 1: with a base
    chunk_bytes: int
    slots: int


def random_case(seed: int, nodes: int) -> Case:
    rng = random.Random(seed)
    members = sorted(rng.sample(range(nodes), rng.randint(1, nodes)))
    gives = [rng.random() < 0.8 for _ in members]
    gives[rng.randrange(len(members))] = True
    return Case(
        members,
        gives,
        [rng.choice([1.0, rng.uniform(0.01, 9.0)]) for _ in members],
        rng.choice(list(DTYPES)),
        [rng.choice([0, 1, 7, rng.randint(1, 4000)]) for _ in range(rng.randint(1, 4))] + [1],
        rng.random() < 0.3,
        rng.choice([1.0, 1.0, rng.uniform(0.0, 1.0)]),
        rng.choice([64, 1000, 1 << 14, 1 << 24]),
        rng.randint(1, 5),
    )


def row_of(case: Case, seed: int, node: int, place: int) -> list[torch.Tensor]:
    """What a rank gives: the same on all ranks of a node, unless it is a shard."""
    number = 1000 * seed + 10 * node + (place if case.is_shard else 0)
    generator = torch.Generator().manual_seed(number)
    tensors = []
    for size in case.sizes:
        wide = torch.randn(size, generator=generator, dtype=torch.float64)
        tensors.append((wide * torch.exp(3 * wide)).clamp(-6e4, 6e4).to(case.dtype))
    return tensors


def base_of(case: Case, seed: int, place: int) -> list[torch.Tensor]:
    return row_of(case, seed + 500_000, 0, place)


def expected(case: Case, seed: int, place: int) -> torch.Tensor:
    of_members = zip(case.members, case.gives, case.weights, strict=True)
    givers = [(node, weight) for node, gives, weight in of_members if gives]
    rows = [torch.cat(row_of(case, seed, node, place)) for node, _ in givers]
    base = torch.cat(base_of(case, seed, place)) if case.alpha < 1.0 else None
    return truth.mean(rows, [weight for _, weight in givers], base, case.alpha)


def over_process_groups(case: Case, seed: int, attempt: int) -> torch.Tensor:
    from lofi.average import exchange
    from lofi.average.rows import Row
    from lofi.groups.peers import peers_of

    exchange.tuning.chunk_bytes, exchange.tuning.slots = case.chunk_bytes, case.slots
    peers = peers_of(case.members, attempt)
    run = exchange.Exchange(peers, case.weights, case.gives, alpha=case.alpha)
    node = case.members[peers.node]
    tensors = row_of(case, seed, node, peers.place)
    if not case.gives[peers.node]:
        tensors = [torch.full_like(tensor, float("nan")) for tensor in tensors]
    base = Row(base_of(case, seed, peers.place)) if case.alpha < 1.0 else None
    row = Row(tensors)
    return torch.cat(list(row.split(run.run(row, case.is_shard, base))))


# -- lofi_exchange, from C -------------------------------------------------------------------------


class ExchangeOptions(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("dtype", ctypes.c_int),
        ("weights", ctypes.c_void_p),
        ("gives", ctypes.c_void_p),
        ("base", ctypes.c_void_p),
        ("alpha", ctypes.c_double),
        ("scratch_bytes", ctypes.c_size_t),
    ]


class Exchanges(Liblofi):
    def exchange(self, case: Case, seed: int, node: int, place: int, comms: Any) -> torch.Tensor:
        index = case.members.index(node)
        data = torch.cat(row_of(case, seed, node, place))
        if not case.gives[index]:
            data.fill_(float("nan"))
        base = torch.cat(base_of(case, seed, place))
        count = len(case.members)
        weights = (ctypes.c_double * count)(*case.weights)
        gives = (ctypes.c_ubyte * count)(*case.gives)
        options = ExchangeOptions(
            ctypes.sizeof(ExchangeOptions),
            DTYPES[case.dtype],
            ctypes.addressof(weights),
            ctypes.addressof(gives),
            base.data_ptr() if case.alpha < 1.0 else None,
            case.alpha,
            max(case.chunk_bytes, 4096),
        )
        self.check(
            self.library.lofi_exchange(
                *comms,
                ctypes.c_void_p(data.data_ptr()),
                ctypes.c_size_t(data.numel()),
                ctypes.byref(options),
            )
        )
        return data


def over_liblofi(case: Case, seed: int, node: int, place: int, size: int) -> torch.Tensor:
    lofi = Exchanges()
    store = dist.PrefixStore(f"c/{seed}", dist.distributed_c10d._get_default_store())
    members = len(case.members)
    column = lofi.comm(dist.PrefixStore(f"column{place}", store), case.members.index(node), members)
    same = 1 if case.is_shard else size  # ranks that hold the same row
    where = dist.PrefixStore(f"node{node}/{place if case.is_shard else 0}", store)
    of_node = lofi.comm(where, 0 if case.is_shard else place, same)
    try:
        return lofi.exchange(case, seed, node, place, (of_node, column))
    finally:
        for comm in (column, of_node):
            lofi.library.lofi_comm_destroy(comm)


def exchange_job(size: int, seeds: range) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    dist.init_process_group("lofi", timeout=timedelta(seconds=30))
    nodes, rank = dist.get_world_size() // size, dist.get_rank()
    node, place = divmod(rank, size)
    results = []
    for seed in seeds:
        case = random_case(seed, nodes)
        if node not in case.members:
            continue
        # Numbers of attempts grow, also where the members are the same as before.
        by_groups = over_process_groups(case, seed, attempt=seed)
        results.append((seed, by_groups, over_liblofi(case, seed, node, place, size)))
    dist.barrier()
    return results


@pytest.mark.parametrize(("nodes", "size"), [(2, 2), (3, 1), (2, 3), (4, 1), (5, 1), (1, 2)])
def test_both_executors_give_the_same_bits(nodes, size):
    seeds = range(100 * nodes + 10 * size, 100 * nodes + 10 * size + 25)
    env = {"LOFI_NODE_SIZE": str(size)}
    results = run_ranks(exchange_job, nodes * size, size, seeds, env=env, timeout=120)
    seen = 0
    for rank, of_rank in enumerate(results):
        for seed, by_groups, by_liblofi in of_rank:
            case = random_case(seed, nodes)
            want = expected(case, seed, rank % size)
            assert torch.equal(by_groups, want), (rank, case)
            assert torch.equal(by_liblofi, want), (rank, case)
            seen += 1
    assert seen >= len(seeds)  # of each case at least one rank


def wrong_members_job() -> list[str]:
    from lofi.groups.peers import peers_of

    dist.init_process_group("lofi", timeout=timedelta(seconds=30))
    told = []
    for nodes in ([1 - dist.get_rank()], [0, 1, 2], [0, 1, 1], []):
        try:
            peers_of(nodes)
        except ValueError as error:
            told.append(str(error))
    assert peers_of().nodes == (0, 1)
    return told


def test_wrong_members():
    for told in run_ranks(wrong_members_job, 2, env={"LOFI_NODE_SIZE": "1"}):
        assert len(told) == 4 and all("each once" in text for text in told)


def bytes_job() -> int:
    """Nodes 0 and 2 of three exchange; node 2 gives nothing."""
    import lofi
    from lofi.average import exchange
    from lofi.average.rows import Row
    from lofi.groups.peers import peers_of

    dist.init_process_group("lofi", timeout=timedelta(seconds=30))
    sent: list[int] = []
    if lofi.stats()["node"] != 1:
        row = Row([torch.ones(1000)])
        gives = [True, False]
        run = exchange.Exchange(peers_of([0, 2], 1), [1.0, 1.0], gives, count=sent.append)
        assert torch.equal(run.run(row)[:1000], torch.ones(1000))
    dist.barrier()
    return sum(sent)


@pytest.mark.quick
def test_absent_and_silent_nodes_cost_nothing():
    sent = run_ranks(bytes_job, 3, env={"LOFI_NODE_SIZE": "1"})
    # A node gives half of its row and returns half of the mean; one that is silent only returns.
    assert sent == [4 * (500 + 500), 0, 4 * 500]
