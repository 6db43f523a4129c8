# SPDX-License-Identifier: MIT
"""Collectives through shared memory as torch's profiler sees them.

The truth is gloo: the same calls on a gloo group give the same events, names aside.
"""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.rank_jobs import batch, job, net, raised, train
from harness.ranks import run_ranks
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.profiler import ExecutionTraceObserver, ProfilerActivity

CPU = [ProfilerActivity.CPU]


def _title(event: Any) -> str | None:
    """Of a collective's own event, without the name of who moved the bytes."""
    prefix, _, title = event.name.partition(":")
    return title if prefix in ("lofi", "gloo") else None


def _collectives(profile: Any) -> list[Any]:
    events = profile.events() if hasattr(profile, "events") else profile.function_events
    found = [event for event in events if _title(event)]
    return sorted(found, key=lambda event: event.time_range.start)


def _shown(profile: Any) -> list[Any]:
    """One collective a line: title, input shapes, whether asynchronous, how many."""
    return [
        (_title(event), event.input_shapes, event.is_async, event.count)
        for event in _collectives(profile)
    ]


def _blank(count: int, *shape: int) -> list[torch.Tensor]:
    return [torch.empty(shape) for _ in range(count)]


def _calls(group: Any) -> None:
    """Each collective that gloo knows by one event, blocking and not."""
    size, rank = dist.get_world_size(), dist.get_rank()
    t = torch.ones(4, 5)
    dist.all_reduce(t, group=group)
    dist.all_reduce(t.t(), op=dist.ReduceOp.MAX, group=group, async_op=True).wait()
    dist.all_reduce(torch.ones(3, dtype=torch.bfloat16), group=group)
    dist.broadcast(t, 0, group=group)
    dist.all_gather(_blank(size, 4, 5), t, group=group)
    dist.all_gather_into_tensor(torch.empty(size * 4, 5), t, group=group, async_op=True).wait()
    for root in range(size):  # some of which are in another node
        dist.reduce(torch.ones(2, root + 1), root, group=group)
        dist.gather(t, _blank(size, 4, 5) if rank == root else None, root, group=group)
    dist.barrier(group=group)
    dist.all_gather_object([None] * size, 7, group=group)


def _calls_of_one_node(group: Any) -> None:
    """Those that are not mirrored."""
    size, rank = dist.get_world_size(), dist.get_rank()
    t = torch.ones(4, 5)
    dist.all_to_all_single(torch.empty(size * 2), torch.ones(size * 2), group=group)
    dist.scatter(t, _blank(size, 4, 5) if rank == 0 else None, 0, group=group)
    dist.send(t, 1, group=group) if rank == 0 else dist.recv(t, 0, group=group)


def _compared(scope: str) -> Any:
    import lofi

    seen = {}
    with job():
        gloo = dist.new_group(backend="gloo")
        for name, group in (("lofi", dist.group.WORLD), ("gloo", gloo)):
            with lofi.scope(scope):
                _calls(group)  # makes the connections
                with torch.profiler.profile(activities=CPU, record_shapes=True) as profile:
                    _calls(group)
                    if dist.get_world_size() == 2:
                        _calls_of_one_node(group)
            seen[name] = _shown(profile)
            seen[f"prefixes of {name}"] = {e.name.split(":")[0] for e in _collectives(profile)}
        dist.barrier()
    return seen


@pytest.mark.parametrize(
    "ranks, scope, environment",
    [
        (2, "world", {}),
        (2, "world", {"LOFI_SHM": "0"}),
        (4, "world", {"LOFI_NODE_SIZE": "2"}),
        (4, "node", {"LOFI_NODE_SIZE": "2"}),
        (4, "node", {"LOFI_NODE_SIZE": "2", "LOFI_SHM": "0"}),
    ],
)
def test_the_events_are_gloos(ranks, scope, environment):
    for seen in run_ranks(_compared, ranks, scope, env=environment):
        assert len(seen["gloo"]) > 2 * ranks
        assert seen["lofi"] == seen["gloo"]
        assert seen["prefixes of gloo"] == {"gloo"}
        if environment.get("LOFI_SHM") != "0":
            assert "lofi" in seen["prefixes of lofi"]


# ---- what gloo makes of others, or does not do ----


def _others() -> Any:
    with job(), torch.profiler.profile(activities=CPU, record_shapes=True) as profile:
        dist.reduce_scatter_tensor(torch.empty(2), torch.ones(4))
        dist.reduce_scatter(torch.empty(3), [torch.ones(3), torch.ones(3)])
        dist.all_reduce(torch.ones(3, dtype=torch.int64), op=dist.ReduceOp.AVG)
        dist.broadcast(torch.ones(2, dtype=torch.float8_e4m3fn), 0)
        dist.barrier()
    return [(event.name, event.input_shapes) for event in _collectives(profile)]


def test_collectives_that_are_lofis_own():
    for events in run_ranks(_others, 2):
        assert events == [
            ("lofi:reduce_scatter", [[4]]),
            ("lofi:reduce_scatter", [[3], [3]]),
            ("lofi:all_reduce", [[3]]),
            ("lofi:broadcast", [[2]]),
            ("lofi:barrier", []),
        ]


# ---- when, and on which thread ----


def _late() -> Any:
    with job(), torch.profiler.profile(activities=CPU) as profile:
        if dist.get_rank() == 1:
            time.sleep(0.5)
        work = dist.all_reduce(torch.ones(8), async_op=True)
        with torch.profiler.record_function("meanwhile"):
            while not work.is_completed():
                torch.ones(100).sum()
                time.sleep(0.01)
        work.wait()
        with torch.profiler.record_function("after"):
            pass
    (reduced,) = (event for event in _collectives(profile) if _title(event) == "all_reduce")
    by_name = {event.name: event for event in profile.events()}
    return reduced, by_name["meanwhile"], by_name["after"], by_name["c10d::allreduce_"]


def _of_first(function: Any, *args: Any) -> Any:
    result = function(*args)
    return [(e.time_range.start, e.time_range.end, e.thread) for e in result]


def test_a_posted_one_lasts_until_it_is_done():
    (reduced, meanwhile, after, issued), _ = run_ranks(_of_first, 2, _late)
    begin, end, thread = reduced
    assert end - begin > 400e3  # microseconds: it waits for the late rank
    assert thread != meanwhile[2] == issued[2]
    assert issued[1] < end < after[0]
    assert begin < meanwhile[1] and meanwhile[0] < end  # they overlap


def _blocking() -> Any:
    with job(), torch.profiler.profile(activities=CPU) as profile:
        dist.all_reduce(torch.ones(8))
    (reduced,) = _collectives(profile)
    (issued,) = (event for event in profile.events() if event.name == "c10d::allreduce_")
    return reduced, issued


def test_a_blocking_one_runs_on_its_caller():
    for reduced, issued in run_ranks(_of_first, 2, _blocking):
        assert reduced[2] == issued[2]
        assert issued[0] <= reduced[0] <= reduced[1] <= issued[1]


def _turned_off_before_the_end() -> Any:
    """A profile may end before the collective, and begin while one is under way."""
    with job():
        store = dist.distributed_c10d._get_default_store()
        profiles, works = [], []
        for _ in range(2):
            if dist.get_rank() == 1:
                store.wait(["profile ended"])
                works.append(dist.all_reduce(torch.ones(8), async_op=True))
                continue
            with torch.profiler.profile(activities=CPU) as profile:
                works.append(dist.all_reduce(torch.ones(8), async_op=True))
            profiles.append(profile)
        store.set("profile ended", "1")
        for work in works:
            work.wait()
        with torch.profiler.profile(activities=CPU) as profile:
            dist.all_reduce(torch.ones(8))
        return [_title(event) for event in _collectives(profile)]


def test_a_profile_that_ends_first():
    assert run_ranks(_turned_off_before_the_end, 2) == [["all_reduce"]] * 2


def _failing() -> Any:
    with job(timeout=20), torch.profiler.profile(activities=CPU) as profile:
        group = dist.new_group(timeout=timedelta(seconds=0.4))
        error = None
        if dist.get_rank() == 0:
            error = raised(dist.all_reduce, torch.ones(8), group=group)
            time.sleep(0.1)
    return str(error), [
        (event.name, event.time_range.elapsed_us()) for event in _collectives(profile)
    ]


def test_one_that_fails_has_an_end():
    (error, events), _ = run_ranks(_failing, 2)
    assert "Timed out" in error
    assert [name for name, _ in events if name == "lofi:all_reduce"] == ["lofi:all_reduce"]
    assert dict(events)["lofi:all_reduce"] > 300e3


# ---- other profilers, and traces ----


def _with_autograds_profiler() -> Any:
    with job(), torch.autograd.profiler.profile(record_shapes=True) as profile:
        dist.all_reduce(torch.ones(2, 3), async_op=True).wait()
    return _shown(profile)


@pytest.mark.quick
def test_autograds_profiler():
    for events in run_ranks(_with_autograds_profiler, 2):
        assert events == [("all_reduce", [[2, 3]], True, 1)]


def _ddp(backend: str, steps: int = 4) -> Any:
    with job(backend):
        model = DDP(net())
        with torch.profiler.profile(activities=CPU, record_shapes=True) as profile:
            train(model, steps)
        other = DDP(net(), find_unused_parameters=True)
        train(other, 3)
        with torch.profiler.profile(activities=CPU) as second:
            other(batch(0, 0)).sum().backward()
    return _shown(profile), [event[0] for event in _shown(second)]


@pytest.mark.parametrize("environment", [{}, {"LOFI_NODE_SIZE": "1"}, {"LOFI_SHM": "0"}])
def test_ddp_shows_what_it_shows_over_gloo(environment):
    (lofi, lofi_second), _ = run_ranks(_ddp, 2, "lofi", env=environment)
    (gloo, gloo_second), _ = run_ranks(_ddp, 2, "gloo")
    assert sorted(lofi, key=str) == sorted(gloo, key=str)
    assert [event[0] for event in lofi].count("all_reduce") >= 4
    assert lofi_second == gloo_second


def _traced(path: str) -> None:
    with job():
        rank = dist.get_rank()
        node = dist.new_group([2, 3])
        observer = ExecutionTraceObserver().register_callback(f"{path}/et{rank}.json")
        observer.start()
        with torch.profiler.profile(activities=CPU) as profile:
            dist.all_reduce(torch.ones(3, 4))
            if rank >= 2:
                out = torch.empty(4, dtype=torch.int64)
                dist.all_gather_into_tensor(out, out[:2].clone(), group=node, async_op=True).wait()
        observer.stop()
        observer.unregister_callback()
        profile.export_chrome_trace(f"{path}/trace{rank}.json")


def test_traces_say_who_communicates_what(tmp_path):
    run_ranks(_traced, 4, str(tmp_path), env={"LOFI_NODE_SIZE": "2"})
    events = json.loads(Path(tmp_path, "trace3.json").read_text())["traceEvents"]
    told = [event["args"] for event in events if event.get("name") == "record_param_comms"]
    assert len(told) == 2
    assert told[0]["Collective name"] == "allreduce"
    assert told[0]["dtype"] == "Float"
    assert told[0]["In msg nelems"] == told[0]["Out msg nelems"] == 12
    assert told[0]["Group size"] == 4
    assert told[0]["Process Group Ranks"] == "[0, 1, 2, 3]"
    assert told[1]["Collective name"] == "all_gather"
    assert told[1]["dtype"] == "Long"
    assert (told[1]["In msg nelems"], told[1]["Out msg nelems"]) == (2, 4)
    assert told[1]["Process Group Ranks"] == "[2, 3]"
    nodes = json.loads(Path(tmp_path, "et3.json").read_text())["nodes"]
    names = [node["name"] for node in nodes]
    assert names.count("record_param_comms") == 2
    assert "lofi:all_reduce" in names and "lofi:all_gather" in names
