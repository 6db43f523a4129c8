# SPDX-License-Identifier: MIT
"""Collectives through shared memory in torch's flight recorder, the truth being gloo's entries."""

import json
import pickle
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.rank_jobs import job, raised
from harness.ranks import run_ranks
from torch._C import _distributed_c10d as c10d

pytestmark = pytest.mark.skipif(
    not hasattr(c10d, "_dump_fr_trace_file"), reason="torch < 2.15 does not show where it is"
)


def _dump() -> dict[str, Any]:
    return json.loads(c10d._dump_fr_trace_json())


def _entries(group: str | None = None) -> list[Any]:
    """Those of a group, by its name; of all without."""
    entries = _dump().get("entries", [])
    return [entry for entry in entries if group in (None, entry["process_group"][0])]


KEYS = ("process_group", "input_sizes", "output_sizes", "input_dtypes", "output_dtypes")
KEYS += ("collective_seq_id", "op_id", "p2p_seq_id", "is_p2p", "timeout_ms", "pg_id", "thread_name")


def _described(entry: dict[str, Any]) -> dict[str, Any]:
    """All but the times, and the name of who moved the bytes."""
    title = entry["profiling_name"].split(":")[1]
    return {"title": title, **{key: entry[key] for key in KEYS}}


def _calls() -> None:
    size, rank = dist.get_world_size(), dist.get_rank()
    t = torch.ones(4, 5)
    dist.all_reduce(t)
    dist.all_reduce(torch.ones(3, dtype=torch.bfloat16), async_op=True).wait()
    dist.broadcast(torch.ones(2, 3, 4, dtype=torch.int64), 0)
    dist.all_gather([torch.empty(4, 5) for _ in range(size)], t)
    dist.all_gather_into_tensor(torch.empty(size * 4, 5), t, async_op=True).wait()
    dist.reduce(t, 1)
    dist.gather(t, [torch.empty(4, 5) for _ in range(size)] if rank == 0 else None, 0)
    dist.all_to_all_single(torch.empty(size * 2), torch.ones(size * 2))
    dist.barrier()


def _recorded(backend: str) -> Any:
    with job(backend):
        _calls()
        return _entries()


def test_the_entries_are_gloos():
    for of_lofi, of_gloo in zip(
        run_ranks(_recorded, 2, "lofi"), run_ranks(_recorded, 2, "gloo"), strict=True
    ):
        assert [_described(entry) for entry in of_lofi] == [_described(e) for e in of_gloo]
        assert {entry["profiling_name"].split(":")[0] for entry in of_lofi} == {"lofi"}
        for entry in of_lofi:
            assert (entry["state"], entry["retired"]) == ("completed", True)
            assert 0 < entry["time_created_ns"] <= entry["time_discovered_started_ns"]
            assert entry["time_discovered_started_ns"] <= entry["time_discovered_completed_ns"]
            assert entry["duration_ms"] >= 0


def test_without_shared_memory_gloo_records_alone():
    for entries in run_ranks(_recorded, 2, "lofi", env={"LOFI_SHM": "0"}):
        assert len(entries) == 9
        assert {entry["profiling_name"].split(":")[0] for entry in entries} == {"gloo"}
        assert {tuple(entry["process_group"]) for entry in entries} == {("0", "default_pg")}


def _mirrored() -> Any:
    import lofi

    with job():
        with lofi.scope("node"):
            dist.all_reduce(torch.ones(3))
            dist.all_gather([torch.empty(2) for _ in range(4)], torch.ones(2))
        node = dist.new_group(
            [0, 1] if dist.get_rank() < 2 else [2, 3], use_local_synchronization=True
        )
        dist.barrier(group=node)
        return _dump()


def test_entries_name_who_took_part():
    for rank, dump in enumerate(run_ranks(_mirrored, 4, env={"LOFI_NODE_SIZE": "2"})):
        node, ranks = rank // 2, str([rank // 2 * 2, rank // 2 * 2 + 1])
        mirrored = [e for e in dump["entries"] if e["process_group"][0] == f"0:node{node}"]
        assert [entry["profiling_name"] for entry in mirrored] == [
            "lofi:all_reduce",
            "lofi:all_gather",
        ]
        assert mirrored[1]["output_sizes"] == [[2, 2]]  # of the node's ranks
        name, desc = mirrored[0]["process_group"]
        assert desc == f"default_pg (node{node})"
        assert dump["pg_config"][name] == {"name": name, "desc": desc, "ranks": ranks}
        own = dump["entries"][-1]
        assert own["profiling_name"] == "lofi:barrier"
        assert dump["pg_config"][own["process_group"][0]]["ranks"] == ranks


def _waiting() -> Any:
    with job():
        dist.barrier()
        store = dist.distributed_c10d._get_default_store()
        entries = []
        if dist.get_rank() == 0:
            works = [dist.all_reduce(torch.ones(3), async_op=True) for _ in range(2)]
            deadline = time.monotonic() + 10
            while _entries()[1]["state"] != "started" and time.monotonic() < deadline:
                time.sleep(0.01)
            entries, status = _entries(), _dump()["pg_status"]["0"]
            store.set("looked", json.dumps(status))
        else:
            store.wait(["looked"])
            works = [dist.all_reduce(torch.ones(3), async_op=True) for _ in range(2)]
        for work in works:
            work.wait()
        states = [(entry["state"], entry["retired"]) for entry in _entries()]
        return (
            [(entry["state"], entry["retired"]) for entry in entries],
            states,
            store.get("looked"),
        )


def test_what_waits_for_another_rank_is_told_apart():
    (meanwhile, after, status), _ = run_ranks(_waiting, 2)
    assert meanwhile == [("completed", True), ("started", False), ("scheduled", False)]
    assert after == [("completed", True)] * 3
    told = json.loads(status)
    assert told["last_enqueued_collective"] == "3"
    assert told["last_started_collective"] == "2"
    assert told["last_completed_collective"] == "1"


def _late() -> Any:
    with job():
        group = dist.new_group(timeout=timedelta(seconds=0.3))
        if dist.get_rank() == 0:
            error = raised(dist.all_reduce, torch.ones(3), group=group)
            refused = raised(dist.all_reduce(torch.ones(3), group=group, async_op=True).wait)
            assert "Timed out" in str(error) and refused
        time.sleep(0.5)
        return [
            (entry["state"], entry["retired"], entry["timeout_ms"], "duration_ms" in entry)
            for entry in _entries("1")
        ]


def test_a_late_rank_leaves_an_entry_that_is_not_completed():
    first, second = run_ranks(_late, 2)
    assert first == [("started", True, 300, False), ("scheduled", True, 300, False)]
    assert second == []


def _rounds(count: int) -> Any:
    with job():
        for i in range(count):
            dist.all_reduce(torch.ones(i + 1), async_op=i % 2 == 0)
        dist.barrier()
        return [entry["input_sizes"] for entry in _entries()]


@pytest.mark.parametrize("size", [0, 1, 3, 100])
def test_the_ring_keeps_the_last(size):
    expected = [[[i + 1]] for i in range(8)] + [[]]
    for sizes in run_ranks(_rounds, 2, 8, env={"TORCH_FR_BUFFER_SIZE": str(size)}):
        assert sizes == (expected[-size:] if size else [])


def _reset() -> Any:
    with job():
        dist.all_reduce(torch.ones(1))
        works = []
        if dist.get_rank() == 0:
            works.append(dist.all_reduce(torch.ones(2), async_op=True))
        c10d._reset_fr_trace()
        if dist.get_rank() == 1:
            works.append(dist.all_reduce(torch.ones(2), async_op=True))
        works[0].wait()
        dist.all_reduce(torch.ones(3))
        return [(entry["record_id"], entry["input_sizes"], entry["state"]) for entry in _entries()]


def test_a_reset_forgets_what_was():
    first, second = run_ranks(_reset, 2, env={"TORCH_FR_BUFFER_SIZE": "3"})
    assert first == [(0, [[3]], "completed")]
    assert second == [(0, [[2]], "completed"), (1, [[3]], "completed")]


def _on_a_named_thread() -> Any:
    def calls() -> None:
        torch.multiprocessing._set_thread_name("fr_test_thread")
        dist.all_reduce(torch.ones(3))
        seen.append(str(threading.get_ident()))

    seen: list[str] = []
    with job():
        thread = threading.Thread(target=calls)
        thread.start()
        thread.join()
        entry = pickle.loads(c10d._dump_fr_trace())["entries"][-1]
        frames = [(frame["name"], Path(frame["filename"]).name) for frame in entry["frames"]]
        return entry["thread_name"], entry["thread_id"] == seen[0], frames


def test_an_entry_says_where_the_call_stands():
    for name, is_its_thread, frames in run_ranks(_on_a_named_thread, 2):
        assert name == "fr_test_thread" and is_its_thread
        assert ("calls", "test_flight_recorder.py") in frames
        assert frames[0][0] == "all_reduce"


def _written(folder: str, skip: int) -> None:
    with job():
        rank = dist.get_rank()
        node = dist.new_group([0, 1])
        for i in range(3):
            dist.all_reduce(torch.ones(i + 1))
        dist.all_gather_into_tensor(torch.empty(4), torch.ones(2), group=node)
        store = dist.distributed_c10d._get_default_store()
        if rank != skip:
            work = dist.all_reduce(torch.ones(9), async_op=True)
        Path(folder, f"rank{rank}").write_bytes(c10d._dump_fr_trace())
        store.set(f"written{rank}", "1")
        store.wait(["written0", "written1"])
        if rank == skip:
            work = dist.all_reduce(torch.ones(9), async_op=True)
        work.wait()


def _analysed(folder: Path) -> str:
    program = "from torch.distributed.flight_recorder.fr_trace import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), "--prefix", "rank"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_torchs_analyser_finds_who_is_missing(tmp_path):
    run_ranks(_written, 2, str(tmp_path), 1)
    said = _analysed(tmp_path)
    assert said.count("Not all ranks joining") == 1 and "mismatch" not in said.lower()
    assert "collective: lofi:all_reduce" in said and "input sizes: [[9]]" in said
    assert "missing ranks: {1}" in said and "group info: 0:default_pg" in said
