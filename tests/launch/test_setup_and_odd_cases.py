# SPDX-License-Identifier: MIT
"""What real scripts do besides wrapping a model and training it, on 2 nodes of 2 ranks."""

import copy
import io
import os
import pickle
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.distributed.nn.functional as dist_fn
from harness.rank_jobs import (
    batch,
    captured_stderr,
    check_all_equal,
    check_apart,
    equal,
    job,
    net,
    raised,
    run_nodes,
    train,
    weights,
)
from harness.truth import mean_of_states
from torch import nn
from torch.distributed.algorithms.join import Join, Joinable, JoinHook
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.nn.parallel import DistributedDataParallel as DDP

NODES = 2


def wrapped(seed: int | None = None, build: Callable[[], nn.Module] = net) -> DDP:
    """A model that each rank begins with weights of its own, in DDP."""
    torch.manual_seed(dist.get_rank() if seed is None else seed)
    return DDP(build())


def node_members() -> list[int]:
    first = dist.get_rank() // 2 * 2
    return [first, first + 1]


# ---- set-up --------------------------------------------------------------------------------------


def _save_barrier_load(path: str) -> Any:
    with job():
        model = wrapped()
        if dist.get_rank() == 0:
            time.sleep(0.3)  # the others must wait, in all nodes
            torch.save({k: torch.full_like(v, 0.5) for k, v in model.state_dict().items()}, path)
        dist.barrier()
        model.load_state_dict(torch.load(path, weights_only=True))
        loaded = weights(model)
        train(model, 2)
        return loaded, weights(model)


def test_save_barrier_load_after_wrapping(tmp_path):
    results = run_nodes(_save_barrier_load, str(tmp_path / "model.pt"))
    for loaded, _ in results:
        assert all(bool((value == 0.5).all()) for value in loaded.values())
    check_apart([end for _, end in results])


def _broadcast_from_rank0() -> Any:
    with job():
        model = wrapped()
        state = {}
        if dist.get_rank() == 0:
            state = {k: torch.full_like(v, 0.5) for k, v in model.module.state_dict().items()}
        options = StateDictOptions(broadcast_from_rank0=True, full_state_dict=True)
        set_model_state_dict(model.module, state, options=options)
        return weights(model)


def test_loading_with_broadcast_from_rank0():
    for loaded in run_nodes(_broadcast_from_rank0):
        assert all(bool((value == 0.5).all()) for value in loaded.values())


def _second_model() -> Any:
    import lofi

    with job():
        generator = wrapped()
        train(generator, 2)
        before = weights(generator)
        critic = wrapped(seed=100 + dist.get_rank())
        start = weights(critic)
        after = weights(generator)
        train(critic, 2)
        train(generator, 1, first=2)
        average = lofi.finalize_average([generator, critic])
        return before, after, start, average.averaged, weights(generator), weights(critic)


def test_a_model_wrapped_while_another_trains_starts_equal():
    results = run_nodes(_second_model)
    before, after, start, averaged, generator, critic = (
        list(part) for part in zip(*results, strict=True)
    )
    check_apart(before)
    assert all(equal(a, b) for a, b in zip(before, after, strict=True))
    check_all_equal(start)
    assert averaged == [8] * 4
    check_all_equal(generator)
    check_all_equal(critic)


def _rewrap(new_head: bool) -> Any:
    import lofi

    with job():
        torch.manual_seed(dist.get_rank())
        module = net()
        module[0].requires_grad_(False)
        model = DDP(module)
        train(model, 2)
        own = weights(module)
        module[0].requires_grad_(True)
        if new_head:
            torch.manual_seed(100 + dist.get_rank())
            module[2] = nn.Linear(16, 4)
        model = DDP(module)
        start = weights(module)
        crossed = lofi.stats()["cross_bytes"]["training"]
        train(model, 2, first=2)
        trained = weights(module)
        lofi.finalize_average(model)
        return own, start, trained, weights(module), crossed


def test_wrapping_again_keeps_each_nodes_training():
    results = run_nodes(_rewrap, False)
    own, start, trained, average, crossed = (list(part) for part in zip(*results, strict=True))
    check_apart(own)
    assert all(equal(a, b) for a, b in zip(own, start, strict=True))
    check_apart(trained)
    assert crossed == [0] * 4
    assert all(equal(end, mean_of_states(trained[0], trained[2])) for end in average)


def test_wrapping_again_with_a_new_head():
    results = run_nodes(_rewrap, True)
    own, start, trained, average, _ = (list(part) for part in zip(*results, strict=True))
    for before, after in zip(own, start, strict=True):
        assert torch.equal(before["0.weight"], after["0.weight"])
        assert not torch.equal(before["2.weight"], after["2.weight"])
        assert torch.equal(after["2.weight"], start[0]["2.weight"])
    check_apart(trained)
    assert all(equal(end, mean_of_states(trained[0], trained[2])) for end in average)


def _never_wraps() -> Any:
    import lofi

    with job(), captured_stderr() as stderr:
        torch.manual_seed(7)
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ends, phases = [], []
        for step in range(3):
            optimizer.zero_grad()
            (model(batch(dist.get_rank(), step)) - 1).pow(2).mean().backward()
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
            optimizer.step()
            ends.append(weights(model))
            phases.append(lofi.phase())
        crossed = lofi.stats()["cross_bytes"]
        lofi.finalize_average(model)
    return ends, phases, crossed, weights(model), stderr.lines("nothing is wrapped")


def test_a_loop_that_never_wraps():
    """Nothing tells that it trains before its first step, whose gradients are still everyone's."""
    results = run_nodes(_never_wraps)
    ends = [result[0] for result in results]
    check_all_equal([end[0] for end in ends])
    check_apart([end[1] for end in ends])
    check_apart([end[2] for end in ends])
    for _, phases, crossed, average, lines in results:
        assert phases == ["train"] * 3
        assert crossed["setup"] > 0 and crossed["training"] == 0
        assert equal(average, mean_of_states(ends[0][2], ends[2][2]))
        assert len(lines) == 1


def _starts_by_hand() -> Any:
    import lofi

    with job():
        torch.manual_seed(7)
        model = net()
        lofi.start()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        (model(batch(dist.get_rank(), 0)) - 1).pow(2).mean().backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        optimizer.step()
        return weights(model), lofi.stats()["cross_bytes"]


def test_start_by_hand_makes_the_first_step_the_nodes_own():
    results = run_nodes(_starts_by_hand)
    check_apart([own for own, _ in results])
    assert all(sum(crossed.values()) == 0 for _, crossed in results)


# ---- checkpoints ---------------------------------------------------------------------------------


def _dcp(folder: str) -> Any:
    import lofi

    with job():
        model = wrapped()
        dcp.save({"model": model.module.state_dict()}, checkpoint_id=f"{folder}/setup")
        start = weights(model.module)
        train(model, 3)
        own = weights(model.module)
        dcp.save({"model": model.module.state_dict()}, checkpoint_id=f"{folder}/train")
        future = dcp.async_save(
            {"model": model.module.state_dict()}, checkpoint_id=f"{folder}/async"
        )
        future.result()
        # Files of node 0's: the other node may come to a load before they are whole.
        with lofi.scope("world"):
            dist.barrier()

        loaded = {}
        for name in ("setup", "train", "async"):
            state = {"model": net().state_dict()}
            dcp.load(state, checkpoint_id=f"{folder}/{name}")
            loaded[name] = state["model"]
        crossed = lofi.stats()["cross_bytes"]["training"]

        lofi.finalize_average(model)
        average = weights(model.module)
        dcp.save({"model": model.module.state_dict()}, checkpoint_id=f"{folder}/done")
        state = {"model": net().state_dict()}
        dcp.load(state, checkpoint_id=f"{folder}/done")
        loaded["done"] = state["model"]
        return start, own, average, loaded, crossed


def test_distributed_checkpoints_hold_one_model(tmp_path):
    results = run_nodes(_dcp, str(tmp_path))
    first_node = results[0][1]
    check_apart([own for _, own, *_ in results])
    for start, _, average, loaded, crossed in results:
        assert equal(loaded["setup"], start)
        assert equal(loaded["train"], first_node)
        assert equal(loaded["async"], first_node)
        assert equal(loaded["done"], average)
        assert crossed == 0


def _dcp_by_everyone(folder: str) -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 2)
        # Something that is every rank's own: only a save by all ranks has it all.
        mine = {f"rank{dist.get_rank()}": torch.full((3,), float(dist.get_rank()))}
        with lofi.scope("world"):
            dcp.save(mine, checkpoint_id=folder)
            state = {f"rank{rank}": torch.zeros(3) for rank in range(4)}
            dcp.load(state, checkpoint_id=folder)
        return state


def test_at_world_scope_a_distributed_checkpoint_is_everyones(tmp_path):
    for state in run_nodes(_dcp_by_everyone, str(tmp_path)):
        assert [state[f"rank{r}"].tolist() for r in range(4)] == [[float(r)] * 3 for r in range(4)]


# ---- evaluation on one rank, nodes that stop -----------------------------------------------------


def _evaluates_on_rank_0() -> Any:
    import lofi

    with job():
        build = lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))  # noqa: E731
        plain, with_buffers = wrapped(), wrapped(build=build)
        for epoch in range(2):
            train(plain, 2, first=2 * epoch)
            train(with_buffers, 2, first=2 * epoch)
            if dist.get_rank() == 0:
                with torch.no_grad():
                    plain(batch(0, 9))
                    plain.eval()
                    plain.module(batch(0, 9))
                    with_buffers.eval()
                    with_buffers.module(batch(0, 9))
                    plain.train()
                    with_buffers.train()
        own = weights(plain)
        lofi.finalize_average([plain, with_buffers])
        return own, lofi.stats()["cross_bytes"]["training"]


def test_evaluation_on_rank_0_alone():
    results = run_nodes(_evaluates_on_rank_0)
    check_apart([own for own, _ in results])
    assert [crossed for _, crossed in results] == [0] * 4


def _stops_early() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 2)
        if lofi.stats()["node"] == 0:
            return None
        return raised(lambda: dist.broadcast(torch.zeros(3), src=0))


def test_a_node_that_stopped_early_is_named():
    results = run_nodes(_stops_early, env={"LOFI_TIMEOUT": "1.5"})
    assert results[:2] == [None, None]
    for error in results[2:]:
        assert error.type == "DistBackendError", error
        assert "broadcast at test_setup_and_odd_cases.py:" in error.text
        assert "node 0 did not come to it within 1.5 s (LOFI_TIMEOUT)" in error.text
        assert 1.4 < error.seconds < 10


def _averages_while_the_other_broadcasts() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 2)
        if lofi.stats()["node"] == 0:
            own = weights(model)
            error = raised(lofi.finalize_average, model)
            assert equal(own, weights(model))
            return error, lofi.phase()
        return raised(lambda: dist.broadcast(torch.zeros(3), src=0)), lofi.phase()


def test_one_node_averages_while_the_other_broadcasts():
    results = run_nodes(_averages_while_the_other_broadcasts, env={"LOFI_TIMEOUT": "2"})
    for error, phase in results[:2]:
        assert error.type == "DistBackendError", error
        assert "node(s) [1] did not come within 2 s" in error.text
        assert "keeps its own weights" in error.text
        assert phase == "train"
    for error, _ in results[2:]:
        assert error.type == "RuntimeError", error
        assert "nodes have drifted apart: node 1 is at broadcast" in error.text
        assert "node 0 at finalize_average" in error.text
        assert error.seconds < 2


def _drifts_between_call_sites() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 1)
        value = torch.full((2,), float(dist.get_rank()))
        if lofi.stats()["node"] == 0:
            return raised(lambda: dist.broadcast(value, src=0))
        return raised(lambda: dist.broadcast_object_list([value], src=0))


def test_nodes_at_different_calls_are_told_at_once():
    for rank, error in enumerate(run_nodes(_drifts_between_call_sites)):
        assert error.type == "RuntimeError", error
        assert f"nodes have drifted apart: node {rank // 2} is at broadcast" in error.text
        assert error.seconds < 5


# ---- what the user sends between nodes -----------------------------------------------------------


def _users_exchange() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 1)
        rank, counts, warned = dist.get_rank(), [], []

        def bytes_sent() -> int:
            return lofi.stats()["cross_bytes"]["training"]

        with captured_stderr() as stderr:
            for step in range(3):
                value = torch.full((4,), float(10 * step + rank))
                before = bytes_sent()
                dist.broadcast(value, src=1)
                counts.append(bytes_sent() - before)
                assert value.tolist() == [10.0 * step + 1] * 4
        warned.append(stderr.lines("crosses nodes while they train apart"))

        with captured_stderr() as stderr:
            for step in range(2):
                objects = [{"step": step, "from": rank}]
                dist.broadcast_object_list(objects, src=2)
                assert objects == [{"step": step, "from": 2}]
        warned.append(stderr.lines("crosses nodes while they train apart"))

        with captured_stderr() as stderr:
            for _ in range(2):
                part = torch.zeros(2)
                parts = [torch.full((2,), float(i)) for i in range(4)] if rank == 0 else None
                dist.scatter(part, parts, src=0)
                assert part.tolist() == [float(rank)] * 2
        warned.append(stderr.lines("crosses nodes while they train apart"))
        return counts, warned, lofi.stats()


def test_a_users_broadcast_is_real_and_counted():
    results = run_nodes(_users_exchange)
    for _, warned, stats in results:
        assert [len(lines) for lines in warned] == [1, 1, 1], warned
        assert "broadcast at " in warned[0][0] and "LOFI_STRICT=1" in warned[0][0]
        assert "scatter at " in warned[2][0]
        assert stats["collectives"]["world"]["training"] == 3 + 2 * 2 + 2
    # The root's node sends 16 bytes once; who counts them is the root.
    assert sum(counts[0] for counts, *_ in results) == 16
    assert all(len(set(counts)) == 1 for counts, *_ in results)
    assert sum(stats["cross_bytes"]["training"] for *_, stats in results) > 3 * 16


def _strict() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 1)
        part = torch.zeros(2)
        parts = [torch.zeros(2) for _ in range(4)] if dist.get_rank() == 0 else None
        errors = [
            raised(lambda: dist.broadcast(torch.zeros(3), src=0)),
            raised(dist.broadcast_object_list, [1], src=0),
            raised(dist.scatter, part, parts, src=0),
        ]
        with lofi.scope("world"):
            dist.broadcast(part, src=0)
        train(model, 1, first=1)
        return errors, lofi.stats()["collectives"]["node"]["training"]


def test_strict_refuses_what_crosses_nodes():
    for errors, _ in run_nodes(_strict, env={"LOFI_STRICT": "1"}):
        for error, name in zip(errors, ("broadcast", "broadcast", "scatter"), strict=True):
            assert "RuntimeError" in error.kinds and name in error.text, error
            assert "LOFI_STRICT" in error.text and 'lofi.scope("world")' in error.text, error


def _scopes() -> Any:
    import lofi

    def total() -> float:
        value = torch.tensor([float(2 ** dist.get_rank())])
        dist.all_reduce(value)
        return value.item()

    with job():
        seen = {"setup": (lofi.phase(), total())}
        with lofi.scope("node"):
            seen["node in setup"] = (lofi.phase(), total())
        lofi.start()
        seen["started"] = (lofi.phase(), total())
        with lofi.scope("world"):
            seen["world"] = (lofi.phase(), total())
            with lofi.scope("node"):
                seen["node in world"] = (lofi.phase(), total())
                with lofi.scope("world"):
                    seen["world in node in world"] = (lofi.phase(), total())
            seen["world again"] = (lofi.phase(), total())
        try:
            with lofi.scope("world"):
                raise KeyError
        except KeyError:
            seen["after an exception"] = (lofi.phase(), total())
        lofi.finalize_average(torch.zeros(2))
        seen["done"] = (lofi.phase(), total())
        seen["wrong scope"] = str(raised(lofi.scope("nodes").__enter__))
        return seen, lofi.stats()


def test_scopes_and_phases():
    for rank, (seen, stats) in enumerate(run_nodes(_scopes)):
        world, node = 15.0, 6.0 if rank < 2 else 24.0
        assert seen.pop("wrong scope").endswith('takes "world" or "node", not \'nodes\'')
        assert seen == {
            "setup": ("setup", world),
            "node in setup": ("setup", node),
            "started": ("train", node),
            "world": ("train", world),
            "node in world": ("train", node),
            "world in node in world": ("train", world),
            "world again": ("train", world),
            "after an exception": ("train", node),
            "done": ("done", world),
        }
        assert stats["phase"] == "done"
        assert (stats["nodes"], stats["node"]) == (2, rank // 2)
        assert stats["collectives"]["world"]["setup"] == 1
        assert stats["collectives"]["node"]["setup"] == 1
        assert stats["collectives"]["world"]["training"] == 3
        assert stats["collectives"]["node"]["training"] == 3
        assert stats["collectives"]["world"]["done"] == 1
        assert stats["cross_bytes"]["training"] > 0


def _phases() -> Any:
    import lofi

    with job():
        model, seen = wrapped(), [lofi.phase()]
        with torch.no_grad():
            model(batch(0, 0))
        seen.append(lofi.phase())
        train(model, 1)
        seen.append(lofi.phase())
        lofi.finalize_average(model)
        seen.append(lofi.phase())
        train(model, 1, first=1)
        seen.append(lofi.phase())
        own = weights(model)
        lofi.finalize_average(model)
        return seen, own, weights(model)


def test_training_goes_on_after_an_average():
    results = run_nodes(_phases)
    assert all(seen == ["setup", "setup", "train", "done", "train"] for seen, *_ in results)
    own = [own for _, own, _ in results]
    check_apart(own)
    assert all(equal(average, mean_of_states(own[0], own[2])) for *_, average in results)


# ---- autograd ------------------------------------------------------------------------------------


def _slot_weights(rank: int) -> torch.Tensor:
    """What rank multiplies each member's slot with."""
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(rank)).double()


def _autograd() -> Any:
    with job():
        model = wrapped()
        train(model, 1)
        rank = dist.get_rank()
        value = torch.full((3,), float(rank), dtype=torch.float64, requires_grad=True)

        slots = dist_fn.all_gather(value)
        gathered = torch.stack([slot.detach() for slot in slots])
        (torch.stack(slots) * _slot_weights(rank)).sum().backward()
        by_list, value.grad = value.grad, None

        total = dist_fn.all_reduce(value.clone())
        (total * _slot_weights(rank)[0]).sum().backward()
        return gathered, by_list, total.detach(), value.grad


def test_autograd_of_collectives_is_the_mirrored_worlds():
    results = run_nodes(_autograd)
    for rank, (gathered, by_list, total, by_sum) in enumerate(results):
        members = [rank // 2 * 2, rank // 2 * 2 + 1]
        assert gathered[:, 0].tolist() == [float(members[place % 2]) for place in range(4)]
        of_slot = sum(_slot_weights(member)[rank] for member in members)
        assert torch.allclose(by_list, NODES * of_slot, rtol=1e-12)
        assert total.tolist() == [NODES * float(sum(members))] * 3
        of_sum = sum(_slot_weights(member)[0] for member in members)
        assert torch.allclose(by_sum, NODES * of_sum, rtol=1e-12)


def _not_on_cpu() -> Any:
    with job():
        model = wrapped()
        train(model, 1)
        value = torch.ones(3, requires_grad=True)
        flat = dist_fn._all_gather_base(torch.empty(12), value)
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(8)))
        return raised(flat.sum().backward), raised(DDP, synced)


def test_what_torch_itself_refuses_on_cpu():
    for backward, sync in run_nodes(_not_on_cpu):
        assert "Backend not supported" in backward.text
        assert "SyncBatchNorm layers only work with GPU modules" in sync.text


# ---- copies of a wrapped model -------------------------------------------------------------------


def carries_nothing(module: nn.Module, bare: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return module.__dict__.keys() == bare.__dict__.keys() and not any(hooks)


def _copies() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 2)
        own = weights(model.module)
        twin = copy.deepcopy(model.module)
        bare = net()
        pickled = pickle.dumps(model)
        again = pickle.loads(pickled)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        saved = torch.load(file, weights_only=False)
        modules = zip(model.module.modules(), bare.modules(), strict=True)
        unchanged = all(carries_nothing(mine, other) for mine, other in modules)
        train(again, 1, first=2)
        assert equal(weights(model.module), own)
        assert not equal(weights(again.module), own)
        copies = (weights(twin), weights(saved.module))
        lofi.finalize_average(model)
        assert equal(weights(twin), own)
        return own, copies, unchanged, b"lofi" in pickled


def test_copies_of_a_wrapped_model_carry_nothing_of_lofis():
    for own, copies, unchanged, named in run_nodes(_copies):
        assert all(equal(own, other) for other in copies)
        assert unchanged
        assert not named


# ---- groups --------------------------------------------------------------------------------------


def _inside_a_node() -> Any:
    import lofi

    with job():
        groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        rank = dist.get_rank()
        group = groups[rank // 2]
        torch.manual_seed(rank)
        model = DDP(net(), process_group=group)
        start = weights(model.module)
        train(model, 2)
        value = torch.tensor([1.0 + rank])
        dist.broadcast(value, src=rank // 2 * 2, group=group)
        parts = [torch.tensor([float(rank)]), torch.tensor([float(rank)])]
        out = torch.zeros(1)
        dist.reduce_scatter(out, parts, group=group)
        own = weights(model.module)
        stats = lofi.stats()
        error = raised(lofi.finalize_average, model)
        return start, own, stats, value.item(), out.item(), error


def test_ddp_over_a_group_inside_one_node():
    results = run_nodes(_inside_a_node)
    for rank, (start, own, stats, value, out, error) in enumerate(results):
        first = rank // 2 * 2
        torch.manual_seed(first)
        assert equal(start, net().state_dict())
        assert not equal(own, start)
        assert value == 1.0 + first and out == 2 * first + 1.0
        assert stats["phase"] == "train" and sum(stats["cross_bytes"].values()) == 0
        # Two groups of one job begin from weights of their own: no model soup of these.
        assert error.type == "ValueError" and "weights that training began with" in error.text
    assert equal(results[0][1], results[1][1]) and equal(results[2][1], results[3][1])


def _uneven_group() -> Any:
    with job():
        group = dist.new_group([0, 2, 3])
        value = torch.ones(1)
        if dist.get_rank() != 1:
            dist.all_reduce(value, group=group)
        model = wrapped()
        train(model, 1)
        if dist.get_rank() == 1:
            return value.item(), None
        return value.item(), [
            raised(dist.all_reduce, torch.ones(1), group=group),
            raised(dist.barrier, group=group),
        ]


def test_a_group_spread_unevenly_over_nodes():
    results = run_nodes(_uneven_group)
    assert [value for value, _ in results] == [3.0, 1.0, 3.0, 3.0]
    for rank in (0, 2, 3):
        for error in results[rank][1]:
            assert "RuntimeError" in error.kinds, error
            assert "3 members are spread unevenly over 2 nodes" in error.text
            assert "1 in node 0, 2 in node 1" in error.text


def _a_gloo_group() -> Any:
    import lofi

    with job(), captured_stderr() as stderr:
        spanning = dist.new_group(backend="gloo")
        inside = dist.new_group(node_members(), backend="gloo", use_local_synchronization=True)
        wrapped_model = wrapped()
        train(wrapped_model, 1)
        before = lofi.stats()["collectives"]["world"]["bypass"]
        value = torch.tensor([float(dist.get_rank())])
        dist.all_reduce(value, group=spanning)
        local = torch.tensor([float(dist.get_rank())])
        dist.all_reduce(local, group=inside)
        counted = lofi.stats()["collectives"]["world"]["bypass"] - before
    return value.item(), local.item(), counted, before, stderr.lines("spans 2 nodes")


def test_a_gloo_group_over_nodes_is_counted_as_bypass():
    for rank, (value, local, counted, before, lines) in enumerate(run_nodes(_a_gloo_group)):
        assert value == 6.0 and local == (1.0 if rank < 2 else 5.0)
        assert before >= 1
        assert counted == 1
        assert len(lines) == 1 and "'gloo'" in lines[0]


# ---- a second job in one process -----------------------------------------------------------------


def _two_jobs(folder: str) -> Any:
    import lofi

    results = []
    ranks = {"rank": int(os.environ["RANK"]), "world_size": 4}
    for number in range(2):
        with job(init_method=f"file://{folder}/{number}", **ranks):
            stats = lofi.stats()
            model = wrapped(seed=10 * number + dist.get_rank())
            start = weights(model)
            train(model, 2)
            own = weights(model)
            lofi.finalize_average(model)
            results.append((stats, start, own, weights(model), lofi.phase()))
        no_group = raised(lofi.stats)
        assert no_group.type == "RuntimeError" and "no process group yet" in no_group.text
    return results


def test_destroying_the_group_and_making_it_again(tmp_path):
    ranks = run_nodes(_two_jobs, str(tmp_path))
    for number in range(2):
        jobs = [results[number] for results in ranks]
        check_all_equal([start for _, start, *_ in jobs])
        check_apart([own for _, _, own, *_ in jobs])
        for stats, _, _, average, phase in jobs:
            assert stats["phase"] == "setup"
            assert sum(stats["cross_bytes"].values()) == 0
            assert equal(average, mean_of_states(jobs[0][2], jobs[2][2]))
            assert phase == "done"


# ---- join ----------------------------------------------------------------------------------------


class _CounterHook(JoinHook):
    def __init__(self, counter: "_Counter"):
        self.counter = counter

    def main_hook(self) -> None:
        dist.all_reduce(torch.zeros(1))

    def post_hook(self, is_last_joiner: bool) -> None:
        self.counter.joined_last = is_last_joiner


class _Counter(Joinable):
    """Of torch's tutorial on uneven inputs: counts the inputs of all ranks."""

    def __init__(self):
        super().__init__()
        self.count, self.joined_last = 0.0, False

    def __call__(self) -> None:
        Join.notify_join_context(self)
        one = torch.ones(1)
        dist.all_reduce(one)
        self.count += one.item()

    def join_hook(self, **kwargs: Any) -> JoinHook:
        return _CounterHook(self)

    @property
    def join_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def join_process_group(self) -> Any:
        return dist.group.WORLD


def _joins() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 1)
        counter = _Counter()
        inputs = 2 + 3 * dist.get_rank()
        with Join([counter, model]):
            for step in range(inputs):
                counter()
                train(model, 1, first=1 + step)
        return counter.count, counter.joined_last, weights(model), lofi.stats()["cross_bytes"]


def test_join_with_inputs_that_differ_between_ranks_and_nodes():
    results = run_nodes(_joins)
    check_apart([own for _, _, own, _ in results])
    for rank, (count, last, _, crossed) in enumerate(results):
        steps = [2 + 3 * member for member in range(4)]
        # At each of its own steps a rank sees K times the ranks of its node that still go on.
        node = steps[rank // 2 * 2 : rank // 2 * 2 + 2]
        expected = sum(NODES * sum(step < other for other in node) for step in range(steps[rank]))
        assert count == expected
        assert last == (rank % 2 == 1)
        assert crossed["training"] == 0
