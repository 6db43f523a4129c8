# SPDX-License-Identifier: MIT
"""finalize_average against an exact mean, and what is left of the weights when it fails."""

import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from harness import truth
from harness.rank_jobs import captured_stderr
from harness.ranks import Failed, run_ranks
from torch import nn

# mantissa bits (with the hidden one), smallest exponent of a subnormal, largest finite value
FORMATS = {
    torch.float64: (53, -1074),
    torch.float32: (24, -149),
    torch.float16: (11, -24),
    torch.bfloat16: (8, -133),
}


def tensors(node: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Odd sizes, an empty tensor, a scalar, a transposed one; large, small and subnormal values."""
    generator = torch.Generator().manual_seed(node)

    def random(*shape):
        scale = torch.exp(4 * torch.randn(shape, generator=generator, dtype=torch.float64))
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        values.view(-1)[::7] *= 2.0**-14
        return values.clamp(-6e4, 6e4).to(dtype)  # fp16 ends at 65504

    made = {"a": random(37, 3), "empty": random(0, 4), "scalar": random(), "b": random(11, 5).t()}
    made["nested"] = {"c": random(201)}
    made["same"] = torch.arange(9).to(dtype)  # equal in all nodes
    return made


def _leaves(state):
    return [state["a"], state["empty"], state["scalar"], state["b"], state["nested"]["c"]]


def _average(dtype, chunk, weights):
    import lofi
    from lofi.average import exchange

    exchange.tuning.chunk_bytes = chunk
    dist.init_process_group("lofi")
    node = lofi.stats()["node"]
    state = tensors(node, dtype)
    same = state["same"].clone()
    average = lofi.finalize_average(state, weight=weights[node])
    assert torch.equal(same, state["same"])
    return _leaves(state), average


@pytest.mark.parametrize(
    ("nodes", "ranks", "dtype", "chunk", "weights"),
    [
        (2, 2, torch.float32, 64, None),
        (2, 1, torch.bfloat16, 1 << 20, None),
        (3, 1, torch.float16, 128, None),
        (3, 2, torch.float32, 1 << 20, [1.0, 2.5, 0.1]),
        (2, 3, torch.float64, 200, None),
        (3, 1, torch.float64, 200, [1.0, 2.5, 0.1]),  # where the order of the sum shows
        (4, 1, torch.bfloat16, 96, [3.0, 1.0, 7.0, 0.3]),
    ],
)
def test_bit_equal_to_the_exact_mean(nodes, ranks, dtype, chunk, weights):
    used = weights or [1.0] * nodes
    env = {"LOFI_NODE_SIZE": str(ranks)}
    results = run_ranks(_average, nodes * ranks, dtype, chunk, used, env=env)
    expected = [_leaves(tensors(node, dtype)) for node in range(nodes)]
    for index, values in enumerate(zip(*expected, strict=True)):
        mean = truth.mean(list(values), used)
        for rank, (state, _) in enumerate(results):
            assert torch.equal(state[index], mean), (rank, index)
    average = results[0][1]
    assert average.nodes == list(range(nodes)) and average.missing == []
    assert average.weights == used
    assert average.tensors == 6 and average.averaged == 4


class Model(nn.Module):
    def __init__(self, node, rank):
        super().__init__()
        torch.manual_seed(100 + node)
        self.tied = nn.Linear(6, 6)
        self.head = nn.Linear(6, 6)
        self.head.weight = self.tied.weight
        self.conv = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        self.frozen = nn.Parameter(torch.linspace(0, 1, 40_000), requires_grad=False)
        self.register_buffer("steps", torch.tensor(10 * node + 3))
        self.register_buffer("flags", torch.tensor([node == 0, True]))
        self.register_buffer("mask", torch.full((3,), float("-inf")))
        self.register_buffer("statistics", torch.tensor([node + 0.25 * (rank % 2), 1.0]))
        self.register_buffer("wave", torch.randn(5, dtype=torch.complex64))


def _model(target):
    import lofi

    dist.init_process_group("lofi")
    model = Model(lofi.stats()["node"], dist.get_rank())
    own = {k: v.clone() for k, v in model.state_dict().items()}
    average = lofi.finalize_average(
        {"module": model, "list": [model], "state": model.state_dict()}[target]
    )
    assert model.head.weight is model.tied.weight
    return own, model.state_dict(), average


@pytest.mark.parametrize("target", ["module", "state"])
def test_a_model_with_everything(target):
    results = run_ranks(_model, 4, target, env={"LOFI_NODE_SIZE": "2"})
    first, second = results[0][0], results[2][0]  # a node's buffers are those of its first rank
    for _, state, average in results:
        for name in ("tied.weight", "head.bias", "conv.weight", "statistics"):
            assert torch.equal(state[name], truth.mean([first[name], second[name]], [1.0, 1.0]))
        wave = [torch.view_as_real(own["wave"]) for own in (first, second)]
        assert torch.equal(torch.view_as_real(state["wave"]), truth.mean(wave, [1.0, 1.0]))
        for name in ("steps", "flags"):
            assert torch.equal(state[name], first[name])
        for name in ("frozen", "mask"):
            assert torch.equal(state[name], first[name])
        assert average.tensors == 11  # the tied one once
        # Frozen tensors are recognised and not sent: they are 160 KB, the rest is 3 KB.
        assert average.bytes_sent < 20_000


def _left_out(bad_nodes):
    import lofi

    dist.init_process_group("lofi")
    node = lofi.stats()["node"]
    state = {"good": torch.full((5,), float(node)), "w": torch.full((5,), node + 1.0)}
    if node in bad_nodes:
        state["w"][3] = float("nan")
    return lofi.finalize_average(state), state


@pytest.mark.quick
def test_a_node_that_is_not_finite_is_left_out():
    for average, state in run_ranks(_left_out, 3, [1], env={"LOFI_NODE_SIZE": "1"}):
        assert average.nodes == [0, 2] and average.missing == [1]
        assert torch.equal(state["w"], torch.full((5,), 2.0))
        assert torch.equal(state["good"], torch.full((5,), 1.0))


def test_no_node_is_finite():
    results = run_ranks(_left_out, 2, [0, 1], env={"LOFI_NODE_SIZE": "1"}, may_fail=True)
    assert all("finite" in str(result) for result in results), results


def _mismatch(kind):
    import lofi

    dist.init_process_group("lofi")
    odd = lofi.stats()["node"] == 1
    state = {"first": torch.ones(3) * dist.get_rank(), "second": torch.ones(4)}
    if odd and kind == "shape":
        state["second"] = torch.ones(2, 2)
    if odd and kind == "dtype":
        state["second"] = torch.ones(4, dtype=torch.bfloat16)
    if odd and kind == "missing":
        del state["second"]
    if odd and kind == "name":
        state["third"] = state.pop("second")
    weight = 1.0
    if kind == "weight":
        weight = -1.0 if odd else 1.0
    if kind == "weights in a node":
        weight = float(dist.get_rank() + 1)
    if kind == "nan on one rank":
        weight = float("nan") if dist.get_rank() == 1 else 1.0
    before = state["first"].clone()
    try:
        lofi.finalize_average(state, weight=weight)
        told = ""
    except ValueError as error:
        told = str(error)
    unchanged = torch.equal(before, state["first"])
    # What failed is over: the next average works.
    average = lofi.finalize_average([torch.full((2,), float(odd))])
    return told, unchanged, average.nodes


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("shape", ["second", "[4]", "[2, 2]", "node 0", "node 1"]),
        ("dtype", ["second", "float32", "bfloat16", "node 0", "node 1"]),
        ("missing", ["second", "nothing there"]),
        ("name", ["second", "third", "node 0", "node 1"]),
        ("weight", ["weight", "node 1"]),
        ("weights in a node", ["different weights", "[1.0, 2.0]"]),
        ("nan on one rank", ["different weights", "[1.0, nan]"]),
    ],
)
def test_targets_that_do_not_match(kind, parts):
    results = run_ranks(_mismatch, 4, kind, env={"LOFI_NODE_SIZE": "2"})
    assert len({told for told, _, _ in results}) == 1
    for told, unchanged, nodes in results:
        assert all(part in told for part in parts), told
        assert unchanged and nodes == [0, 1]


def _other_start():
    import lofi

    dist.init_process_group("lofi")
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    if lofi.stats()["node"] == 1:  # another checkpoint, on this node alone
        nn.init.ones_(model.module[1].weight)
    model(torch.ones(2, 3)).sum().backward()
    own = [p.detach().clone() for p in model.parameters()]
    try:
        lofi.finalize_average(model)
    except ValueError as error:
        same = all(torch.equal(a, b) for a, b in zip(own, model.parameters(), strict=True))
        return str(error), same, lofi.phase()


def test_nodes_that_began_from_other_weights():
    for told, same, phase in run_ranks(_other_start, 4, env={"LOFI_NODE_SIZE": "2"}):
        assert "1.weight" in told and "began with" in told and "node 1" in told
        assert same and phase == "train"


def _late():
    import lofi

    dist.init_process_group("lofi")
    if lofi.stats()["node"] == 2:
        time.sleep(4)
        return None
    weights = torch.full((3,), float(dist.get_rank()))
    try:
        lofi.finalize_average([weights], timeout=1.5)
    except dist.DistBackendError as error:
        if dist.get_rank() == 0:
            time.sleep(1)  # it holds the store, where the other one reads what came out
        return str(error), weights


def test_a_node_that_never_comes_is_named():
    results = run_ranks(_late, 3, env={"LOFI_NODE_SIZE": "1"})
    for rank in (0, 1):
        told, weights = results[rank]
        assert "node(s) [2]" in told and "1.5 s" in told and "own weights" in told
        assert torch.equal(weights, torch.full((3,), float(rank)))


def _absent(ranks):
    import lofi

    dist.init_process_group("lofi")
    store = dist.PrefixStore("absent", dist.distributed_c10d._get_default_store())
    told = ""
    if dist.get_rank() not in ranks:
        with pytest.raises(dist.DistBackendError) as error:
            lofi.finalize_average([torch.ones(3)], timeout=1.5)
        told = str(error.value)
    store.set(str(dist.get_rank()), "")
    store.wait([str(rank) for rank in range(4)])
    return told


@pytest.mark.parametrize(
    ("ranks", "seen"),
    [
        ([1], ["rank(s) [1] of this node did", "rank(s) [1] of node 0 did"]),
        ([2, 3], ["node(s) [1] did", ""]),
        ([1, 2, 3], ["node(s) [1] and rank(s) [1] of this node did", ""]),
    ],
)
def test_ranks_that_never_come_are_named(ranks, seen):
    for rank, told in enumerate(run_ranks(_absent, 4, ranks, env={"LOFI_NODE_SIZE": "2"})):
        if rank not in ranks:
            assert f"Timed out waiting: {seen[rank // 2]} not come within 1.5 s" in told


def _killed():
    import lofi
    from lofi._C import EXCHANGE_COMBINE
    from lofi.average import exchange

    dist.init_process_group("lofi", timeout=timedelta(seconds=6))
    exchange.tuning.chunk_bytes = 1024

    def die(step):
        if (step.kind, step.chunk) == (EXCHANGE_COMBINE, 2):
            os.kill(os.getpid(), signal.SIGKILL)

    if dist.get_rank() == 3:
        exchange.tuning.before_step = die
    weights = torch.full((5000,), float(dist.get_rank() // 2))
    before = weights.clone()
    try:
        lofi.finalize_average([weights])
        told = ""
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
    return told, torch.equal(before, weights), lofi.phase()


def test_a_rank_that_dies_in_the_exchange():
    results = run_ranks(_killed, 4, env={"LOFI_NODE_SIZE": "2"}, may_fail=True, timeout=60)
    assert isinstance(results[3], Failed)
    for told, unchanged, phase in results[:3]:
        assert told and unchanged and phase == "setup"


def _comes_late():
    import lofi

    dist.init_process_group("lofi", timeout=timedelta(seconds=20))
    store = dist.distributed_c10d._get_default_store()
    node = lofi.stats()["node"]
    weights = torch.full((3,), float(node))
    lofi.start()
    told = ""
    if node == 2:
        store.wait(["gave up/0", "gave up/1"])
    else:
        with pytest.raises(dist.DistBackendError) as error:
            lofi.finalize_average([weights], timeout=0.3)
        told = str(error.value)
        store.set(f"gave up/{node}", "")
        if node == 1:
            store.wait(["second"])  # so that the others wait for this one
    if node == 0:
        store.set("second", "")
    average = lofi.finalize_average([weights])
    # A broadcast compares where the nodes are: those who gave up once are not one ahead.
    value = torch.full((1,), float(node))
    lofi.start()
    dist.broadcast(value, src=1)
    with lofi.scope("world"):
        dist.barrier()  # rank 0 holds the store: it must not leave first
    return told, average.nodes, weights, value.item()


def test_nodes_that_gave_up_can_come_again():
    for rank, result in enumerate(run_ranks(_comes_late, 3, env={"LOFI_NODE_SIZE": "1"})):
        told, nodes, weights, value = result
        assert rank == 2 or "2]" in told
        assert nodes == [0, 1, 2] and torch.equal(weights, torch.ones(3)) and value == 1.0


def _tie(dtype, step):
    import lofi

    dist.init_process_group("lofi")
    node = lofi.stats()["node"]
    # The mean lies a little above the middle of two neighbours; rounded to float32 first, it is
    # the middle, and would then be rounded down to even.
    value = torch.tensor([1.0 + node * step, -1.0 - node * step], dtype=dtype)
    lofi.finalize_average([value], weight=1.0 if node == 0 else 1.0 + 2.0**-28)
    return value.tolist()


@pytest.mark.quick
@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)])
def test_rounded_once_not_by_way_of_float32(dtype, step):
    for value in run_ranks(_tie, 2, dtype, step, env={"LOFI_NODE_SIZE": "1"}):
        assert value == [1.0 + step, -1.0 - step]


def _every_kind_of_target():
    import lofi

    dist.init_process_group("lofi")
    rank, node = dist.get_rank(), lofi.stats()["node"]

    def own(*shape, dtype=torch.float32):
        return torch.full(shape, float(2 * node), dtype=dtype)

    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, 2.0 * node)
    nn.init.zeros_(module.bias)
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        wrapped.module.weight.copy_(own(1, 2))
    stepped = nn.Parameter(own(3))
    stepped.grad = own(3)
    optimizer = torch.optim.SGD([stepped], lr=0.0, momentum=0.9)
    optimizer.step()
    averaged = {
        "list": [own(3), own(2, 2)],
        "nested": {"a": [{"b": own(2)}, (own(1), [own(4)])], "epoch": 3},
        "expanded": [own(1).expand(5), own(2, 1, 3)[:, :, ::2], own(3, 1).expand(3, 4)],
    }
    kinds = [*averaged.values(), {"model": module}, wrapped, (t for t in [own(6)]), optimizer]
    tensors = [lofi.finalize_average(kind).tensors for kind in kinds]
    momentum = optimizer.state[stepped]["momentum_buffer"]
    leaves = [*averaged["list"], *averaged["expanded"], averaged["nested"]["a"][0]["b"]]
    leaves += [*averaged["nested"]["a"][1][:1], *averaged["nested"]["a"][1][1]]
    leaves += [module.weight.detach(), wrapped.module.weight.detach(), momentum]
    # Buffers of any dtype may differ inside a node: the first rank's count.
    inside = [torch.full((2,), rank).to(d) for d in (torch.int16, torch.complex64, torch.bool)]
    large = own(1_000_001)  # in few places, wherever these are
    large[5_000 + 500_000 * (rank % 2)] += 5
    lofi.finalize_average([*inside, large])
    assert large[5_000] == 6 and large.sum() == 1_000_006
    return tensors, leaves, stepped.detach(), [t[0].item() for t in inside]


@pytest.mark.quick
def test_every_kind_of_target():
    results = run_ranks(_every_kind_of_target, 4, env={"LOFI_NODE_SIZE": "2"})
    for rank, (tensors, leaves, stepped, inside) in enumerate(results):
        assert tensors == [2, 3, 3, 2, 1, 1, 1]
        assert all(torch.equal(leaf, torch.ones_like(leaf)) for leaf in leaves)
        assert torch.equal(stepped, torch.full((3,), 2.0 * (rank // 2)))  # only its state
        assert inside == [0, 1 + 0j, False]


def _bytes():
    import lofi
    from lofi.average import exchange

    exchange.tuning.chunk_bytes = 1 << 16
    dist.init_process_group("lofi")
    state = [torch.full((50_001,), float(dist.get_rank())), torch.ones(100_000)]
    return lofi.finalize_average(state).bytes_sent, lofi.stats()["cross_bytes"]["average"]


@pytest.mark.parametrize(("nodes", "ranks"), [(2, 2), (3, 1), (2, 3)])
def test_sends_no_more_than_it_says(nodes, ranks):
    results = run_ranks(_bytes, nodes * ranks, env={"LOFI_NODE_SIZE": str(ranks)})
    least = 2 * (nodes - 1) / nodes * 4 * 50_001
    for sent, counted in results:
        assert least <= sent <= 1.02 * least + 1000
        assert sent / ranks <= 1.1 * counted  # of this rank, by its own statistics


def _bad_arguments():
    import lofi

    dist.init_process_group("lofi")
    told = []
    wrong = [{"weight": 0.0}, {"weight": -1.0}, {"weight": float("nan")}, {"weight": float("inf")}]
    wrong += [{"timeout": 0}, {"timeout": float("nan")}]
    weights = torch.full((2,), float(dist.get_rank()))
    for arguments in wrong:
        try:
            lofi.finalize_average([weights], **arguments)
        except ValueError as error:
            told.append(str(error))
    assert torch.equal(weights, torch.full((2,), float(dist.get_rank())))
    return told, lofi.phase()


@pytest.mark.parametrize("node_size", [1, 2])
def test_bad_arguments(node_size):
    for told, phase in run_ranks(_bad_arguments, 2, env={"LOFI_NODE_SIZE": str(node_size)}):
        assert len(told) == 6 and phase == "setup"
        assert all("weight" in text for text in told[:4]), told
        assert all("timeout" in text for text in told[4:]), told


def _phases():
    import lofi

    dist.init_process_group("lofi")
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 3))
    seen = [lofi.phase()]
    torch.manual_seed(dist.get_rank())
    for _ in range(2):
        model(torch.randn(4, 3)).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        seen.append(lofi.phase())
        average = lofi.finalize_average(model)
        seen.append(lofi.phase())
        with torch.no_grad():
            model(torch.ones(1, 3))
        seen.append(lofi.phase())
    return seen, average.nodes, [p.detach().clone() for p in model.parameters()]


def test_phases_around_averages():
    results = run_ranks(_phases, 4, env={"LOFI_NODE_SIZE": "2"})
    for seen, nodes, parameters in results:
        assert seen == ["setup", "train", "done", "done", "train", "done", "done"]
        assert nodes == [0, 1]
        assert all(torch.equal(a, b) for a, b in zip(parameters, results[0][2], strict=True))


def test_one_node_keeps_its_weights():
    for seen, nodes, _ in run_ranks(_phases, 2, env={"LOFI_NODE_SIZE": "2"}):
        assert seen[2] == "done" and nodes == [0]


def _bad_targets():
    import lofi

    dist.init_process_group("lofi")
    sparse = torch.sparse_coo_tensor([[0]], [1.0], (3,))
    told = []
    for target in (7, "model", {}, [torch.ones(2, device="meta")], [sparse]):
        try:
            lofi.finalize_average(target)
        except (TypeError, ValueError) as error:
            told.append(f"{type(error).__name__}: {error}")
    return told


def test_bad_targets():
    for told in run_ranks(_bad_targets, 2, env={"LOFI_NODE_SIZE": "1"}):
        assert len(told) == 5
        assert "TypeError" in told[0] and "int" in told[0]
        assert "TypeError" in told[1] and "no tensors" in told[2]
        assert "meta device" in told[3] and "sparse" in told[4]


def _parameters_that_differ_inside():
    import lofi

    dist.init_process_group("lofi")
    model = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(5))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.fill_(float(10 * index + dist.get_rank()))
    with captured_stderr() as stderr:
        lofi.finalize_average(model)
    return stderr.lines("hold different values")


def test_parameters_that_differ_inside_a_node_are_told_in_one_line():
    first, *others = run_ranks(_parameters_that_differ_inside, 4, env={"LOFI_NODE_SIZE": "2"})
    assert len(first) == 1 and "0.weight and 9 others" in first[0], first
    assert others == [[], [], []]
