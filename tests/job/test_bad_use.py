# SPDX-License-Identifier: MIT
"""Wrong settings, wrong calls, ranks that never come, installations that do not fit: each is
refused in one clear sentence, on every rank, and nothing hangs. And what `import torch` costs."""

import os
import shutil
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.rank_jobs import captured_stderr, job, net, raised, run_nodes, train
from harness.ranks import run_ranks

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

# ---- settings ------------------------------------------------------------------------------------


def _starts(folder: str, cases: list[tuple[dict[str, str], dict[str, str]]]) -> list[Any]:
    """What each case raises: variables of rank 2, and of the others."""
    rank, results = int(os.environ["RANK"]), []
    for number, (odd, others) in enumerate(cases):
        variables = odd if rank == 2 else others
        os.environ.update(variables)
        results.append(
            raised(
                dist.init_process_group,
                "lofi",
                init_method=f"file://{folder}/{number}",
                rank=rank,
                world_size=4,
                timeout=timedelta(seconds=10),
            )
        )
        for name in variables:
            del os.environ[name]
    return results


def check_same_sentence(
    folder: Path, cases: list[tuple[dict[str, str], dict[str, str], list[str]]]
) -> None:
    asked = [case[:2] for case in cases]
    ranks = run_ranks(_starts, 4, str(folder), asked)
    for number, (odd, _, parts) in enumerate(cases):
        errors = [results[number] for results in ranks]
        assert all(errors), f"{odd}: {errors}"
        assert len({error.text for error in errors}) == 1, f"{odd}: {errors}"
        assert all(error.seconds < 8 for error in errors), errors
        assert all(part in errors[0].text for part in parts), f"{odd}: {errors[0]}"


NONSENSE = [
    ("LOFI_NODE_SIZE", "two"),
    ("LOFI_NODE_SIZE", "0"),
    ("LOFI_NODE_SIZE", "-2"),
    ("LOFI_NODE_SIZE", "2.0"),
    ("LOFI_NODE_SIZE", " 2"),
    ("LOFI_NODE_SIZE", "99999999999999999999"),
    ("LOFI_STRICT", "yes"),
    ("LOFI_STRICT", "2"),
    ("LOFI_TIMEOUT", "soon"),
    ("LOFI_TIMEOUT", "-1"),
    ("LOFI_TIMEOUT", "nan"),
    ("LOFI_TIMEOUT", "0"),
    ("LOFI_SAVE", "inside"),
    ("LOFI_LOG", "loud"),
    ("LOFI_SHM", "yes"),
    ("LOFI_EVAL", "always"),
    ("LOFI_EVAL_WAIT", "long"),
    ("LOFI_ON_SIGTERM", "ignore"),
    ("LOFI_DIR", "somewhere"),
    ("LOFI_NODES", "4"),
    ("LOFI_NODE", "1"),
    ("LOFI_MIN_NODES", "2"),
]


def test_nonsense_on_one_rank_is_the_same_sentence_on_every_rank(tmp_path):
    fine = {"LOFI_NODE_SIZE": "2"}
    cases = [
        ({**fine, name: value}, fine, ["rank 2: ", name, value.strip()[:20]])
        for name, value in NONSENSE
    ]
    check_same_sentence(tmp_path, cases)


@pytest.mark.quick
def test_nodes_that_do_not_fit_and_ranks_that_disagree(tmp_path):
    def everywhere(variables: dict[str, str], *parts: str) -> Any:
        return variables, variables, list(parts)

    check_same_sentence(
        tmp_path,
        [
            everywhere({"LOFI_NODE_SIZE": "3"}, "4 ranks can't be split into nodes of 3 ranks"),
            everywhere({"LOFI_NODE_SIZE": "8"}, "can't be split into nodes of 8 ranks"),
            (
                {"LOFI_NODE_SIZE": "4"},
                {"LOFI_NODE_SIZE": "2"},
                ["rank 0 has 2 (LOFI_NODE_SIZE), rank 2 has 4 (LOFI_NODE_SIZE)"],
            ),
            # LOCAL_WORLD_SIZE says 4 on every rank: one that asks for it is still one that asks.
            ({"LOFI_NODE_SIZE": "4"}, {}, ["node sizes differ", "rank 2 has 4 (LOFI_NODE_SIZE)"]),
            (
                {"LOFI_STRICT": "1", "LOFI_NODE_SIZE": "2"},
                {"LOFI_NODE_SIZE": "2"},
                ["settings differ: rank 0 has", "rank 2 has", "LOFI_STRICT=True"],
            ),
            (
                {"LOFI_SAVE": "off", "LOFI_NODE_SIZE": "2"},
                {"LOFI_NODE_SIZE": "2"},
                ["settings differ", "LOFI_SAVE=off"],
            ),
        ],
    )


def _unknown_variable() -> Any:
    import lofi

    with captured_stderr() as stderr, job():
        stats = lofi.stats()
    return stats["nodes"], stderr.lines("LOFI_")


def test_a_misspelt_variable_is_named():
    env = {"LOFI_NODESIZE": "4", "LOFI_STATS": "", "LOFI_TEST_ANYTHING": "1"}
    for rank, (nodes, lines) in enumerate(run_nodes(_unknown_variable, env=env)):
        assert nodes == 2
        assert len(lines) == (rank % 2 == 0)  # once a node
        if not lines:
            continue
        assert "LOFI_NODESIZE is not a setting of lofi and is ignored" in lines[0]
        assert "did you mean LOFI_NODE_SIZE?" in lines[0]


def _configures() -> Any:
    import lofi

    errors = [
        raised(lofi.configure, **{name: value})
        for name, value in [
            ("nodesize", 2),
            ("node_size", 0),
            ("node_size", "two"),
            ("node_size", 1.5),
            ("node_size", None),
            ("strict", "maybe"),
            ("timeout", -3),
            ("timeout", "long"),
            ("save", "nowhere"),
            ("log", "shout"),
        ]
    ]
    # A call that is wrong in one of its values changes nothing.
    errors.append(raised(lofi.configure, node_size=4, strict="maybe"))
    lofi.configure(node_size=1, timeout=2, strict=True, save="off", log="error")
    with job():
        lofi.start()
        strict = raised(dist.broadcast, torch.zeros(1), src=0)
        return errors, lofi.stats()["nodes"], strict


@pytest.mark.quick
def test_configure():
    env = {"LOFI_NODE_SIZE": "2", "LOFI_STRICT": "0", "LOFI_TIMEOUT": "100"}
    for errors, nodes, strict in run_nodes(_configures, env=env):
        assert errors[0].type == "TypeError"
        assert "has no setting 'nodesize'" in errors[0].text and "node_size" in errors[0].text
        for error in errors[1:]:
            assert error.type == "ValueError", error
            assert "lofi.configure(" in error.text, error
        assert nodes == 4
        assert "LOFI_STRICT" in strict.text


# ---- calls ---------------------------------------------------------------------------------------


def _refused_calls() -> Any:
    import lofi

    with job():
        model = torch.nn.parallel.DistributedDataParallel(net())
        train(model, 1)
        rank = dist.get_rank()
        inputs, outputs = torch.zeros(4), torch.zeros(4)
        beyond = (rank + 2) % 4  # a rank of the other node
        errors = {
            "all_to_all": raised(dist.all_to_all, list(outputs.split(1)), list(inputs.split(1))),
            "all_to_all_single": raised(dist.all_to_all_single, outputs, inputs),
            "reduce_scatter": raised(dist.reduce_scatter, torch.zeros(1), list(inputs.split(1))),
            "reduce_scatter_tensor": raised(dist.reduce_scatter_tensor, torch.zeros(1), inputs),
            "send": raised(dist.send, torch.zeros(1), beyond),
            "isend": raised(dist.isend, torch.zeros(1), beyond),
            "recv": raised(dist.recv, torch.zeros(1), beyond),
            "irecv": raised(dist.irecv, torch.zeros(1), beyond),
        }
        # The neighbour in the node is still there, and so is the world at its scope.
        value = torch.tensor([float(rank)])
        if rank % 2 == 0:
            dist.send(value, rank + 1)
        else:
            dist.recv(value, rank - 1)
        with lofi.scope("world"):
            dist.all_to_all_single(outputs, torch.full((4,), float(rank)))
        return errors, value.item(), outputs.tolist(), lofi.stats()["cross_bytes"]["training"]


def test_calls_that_have_no_meaning_inside_a_node():
    for rank, (errors, value, outputs, crossed) in enumerate(run_nodes(_refused_calls)):
        for name, error in errors.items():
            assert error is not None and "RuntimeError" in error.kinds, f"{name}: {error}"
            stem = {"isend": "send", "irecv": "recv"}.get(name, name.split("_single")[0])
            assert stem.split("_tensor")[0] in error.text, f"{name}: {error}"
            assert 'lofi.scope("world")' in error.text, f"{name}: {error}"
            assert error.seconds < 5
        assert f"rank {(rank + 2) % 4}" in errors["send"].text
        assert value == rank // 2 * 2
        assert outputs == [0.0, 1.0, 2.0, 3.0]
        assert crossed == 2 * 4  # the all_to_all at world scope: two ranks of the other node


def _every_call() -> list[Any]:
    import lofi

    def scope() -> None:
        with lofi.scope("world"):
            pass

    calls = (lofi.start, lofi.stats, lofi.phase, scope, lambda: lofi.finalize_average(net()))
    return [raised(call) for call in calls]


def _with_gloo() -> list[Any]:
    with job("gloo"):
        return _every_call()


def test_use_without_a_group():
    for error in run_ranks(_every_call, 1)[0]:
        assert error.type == "RuntimeError"
        assert "there is no process group yet" in error.text
        assert 'init_process_group(backend="lofi")' in error.text and "-m lofi" in error.text


def test_use_with_a_gloo_group():
    for error in run_ranks(_with_gloo, 2)[0]:
        assert error.type == "RuntimeError"
        assert "made with backend 'gloo'" in error.text
        assert 'init_process_group(backend="lofi")' in error.text and "-m lofi" in error.text


# ---- a rank that never comes ---------------------------------------------------------------------


def _waits_for_a_rank(folder: str) -> Any:
    rank = int(os.environ["RANK"])
    if rank == 3:
        return None
    seconds = timedelta(seconds=2)
    own = raised(
        dist.init_process_group,
        "lofi",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=4,
        timeout=seconds,
    )
    # By MASTER_ADDR torch's own store counts the ranks first, on rank 0; others may get to lofi.
    from_env = raised(dist.init_process_group, "lofi", timeout=seconds)
    return own, from_env


def test_a_rank_that_never_comes(tmp_path):
    for result in run_nodes(_waits_for_a_rank, str(tmp_path))[:3]:
        own, from_env = result
        assert " Timed out waiting: rank" in own.text, own
        assert "waited 2 s at start for rank(s) 3 of 4" in own.text, own
        assert "DistBackendError" in own.kinds, own
        assert 1.5 < own.seconds < 8
        assert from_env is not None and from_env.seconds < 15


# ---- import torch --------------------------------------------------------------------------------


def python(code: str, **env: str) -> dict[str, Any]:
    """Run code in a fresh interpreter; what it assigns to `result`."""
    full = textwrap.dedent(code) + "\nprint('RESULT', repr(result))\n"
    done = subprocess.run(
        [sys.executable, "-c", full],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return {**eval(result[-1][7:]), "stderr": done.stderr}


LOOK = """
    import os, sys, threading
    import torch
    import torch.distributed as dist
    mine = sorted(name for name in sys.modules if name.split(".")[0] == "lofi")
    result = dict(
        known="LOFI" in dist.Backend._plugins,
        named=getattr(dist.Backend, "LOFI", None),
        modules=mine,
        threads=len(os.listdir("/proc/self/task")),
        python_threads=threading.active_count(),
    )
"""


def test_import_torch_makes_the_name_known_and_nothing_else():
    seen = python(LOOK)
    assert seen["known"] and seen["named"] == "lofi"
    assert set(seen["modules"]) <= {
        "lofi",
        "lofi.features",
        "lofi.groups",
        "lofi.groups.register",
        "lofi._version",
    }
    assert seen["python_threads"] == 1
    without = python(LOOK, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert not without["known"] and without["modules"] == []
    assert seen["threads"] == without["threads"]
    assert seen["stderr"] == without["stderr"]


def test_import_lofi_patches_nothing():
    seen = python(
        """
        import sys
        import torch
        import torch.distributed as dist
        from torch.distributed import distributed_c10d as c10d
        from torch.nn.parallel import DistributedDataParallel as DDP
        import torch.distributed.nn.functional as functional
        import torch.distributed.optim.zero_redundancy_optimizer as zero

        owners = [c10d, dist, DDP, functional, functional._AllGather, zero.ZeroRedundancyOptimizer,
                  torch.optim.Optimizer, torch.nn.Module, torch.serialization, dist.ProcessGroup]
        def look():
            return [dict(vars(owner)) for owner in owners], list(sys.meta_path)
        def same(a, b):
            return all(x.keys() == y.keys() and all(x[k] is y[k] for k in x)
                       for x, y in zip(a[0], b[0])) and a[1] == b[1]
        before = look()
        import lofi
        import lofi.groups.register
        lofi.groups.register.register()
        lofi.groups.register.autoload()
        names = dir(lofi)
        after_import = same(before, look())
        native = "lofi._C" in sys.modules
        known = dist.Backend._plugins["LOFI"]
        dist.init_process_group("lofi", store=dist.HashStore(), rank=0, world_size=1)
        first = look()
        dist.destroy_process_group()
        dist.init_process_group("lofi", store=dist.HashStore(), rank=0, world_size=1)
        result = dict(after_import=after_import, native=native, version=lofi.__version__,
                      patched=not same(before, first), names=names,
                      once=DDP.__init__ is first[0][2]["__init__"])
        dist.destroy_process_group()
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert seen["after_import"] and not seen["native"]
    assert seen["patched"] and seen["once"]
    assert "finalize_average" in seen["names"] and seen["version"]


@pytest.mark.skipif(TORCH < (2, 14), reason="torch < 2.14 looks for no entry point by name")
def test_the_name_is_found_without_autoloading():
    seen = python(
        """
        import torch.distributed as dist
        dist.init_process_group("lofi", store=dist.HashStore(), rank=0, world_size=1)
        result = dict(backend=dist.get_backend())
        dist.destroy_process_group()
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert seen["backend"] == "lofi"


def test_a_broken_lofi_does_not_break_torch(tmp_path):
    source = Path(__import__("lofi").__file__).parent
    package = tmp_path / "lofi"
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    text = (package / "groups/register.py").read_text()
    begin, end = text.index("    import torch.distributed as dist"), text.index("def autoload")
    broken = '    raise LookupError("torch has changed")\n\n\n'
    (package / "groups/register.py").write_text(text[:begin] + broken + text[end:])
    seen = python("import torch\nresult = dict(one=float(torch.ones(1)))", PYTHONPATH=str(tmp_path))
    assert seen["one"] == 1.0
    assert "lofi: could not register with torch" in seen["stderr"]
    assert "torch has changed" in seen["stderr"]


def _another_torch() -> Any:
    for name in [name for name in sys.modules if name.startswith("lofi.") and name != "lofi._C"]:
        del sys.modules[name]  # another test may have needed it
    torch.__version__ = "2.3.1"
    other = raised(dist.init_process_group, "lofi", world_size=1, rank=0, store=dist.HashStore())
    sys.modules["lofi._C"] = None  # as if it could not be loaded
    import lofi

    vars(lofi).pop("_C", None)
    missing = raised(dist.init_process_group, "lofi", world_size=1, rank=0, store=dist.HashStore())
    return other, missing


def test_a_native_module_built_for_another_torch():
    (other, missing), *_ = run_ranks(_another_torch, 1)
    assert other.type == "ImportError"
    assert "the native module was built for torch 2." in other.text
    assert "this is 2.3.1: reinstall lofi" in other.text
    assert missing.type == "ImportError"
    assert "the native module does not load with torch 2.3.1" in missing.text
    assert "pip install --no-build-isolation" in missing.text
