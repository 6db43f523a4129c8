# SPDX-License-Identifier: MIT
"""Many small scripts under the launcher. test_launcher.py has the real thing."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.launched import WRAPPED, launch, launched, load, mean
from harness.rank_jobs import equal, job, raised
from harness.ranks import run_ranks

# ---- how a script begins -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ['"gloo", ', ""])
def test_a_group_that_is_bound_to_a_device(tmp_path, backend):
    script = f"""
    dist.init_process_group({backend}device_id=torch.device("cpu:0"))
    model = DDP(nn.Linear(4, 2))
    train(model)
    part = dist.split_group(split_ranks=[[0, 1]])
    value = torch.ones(1)
    dist.all_reduce(value, group=part)
    assert dist.get_backend() == "gloo" and value.item() == 2
    """
    ended = launch(tmp_path, script)
    assert [rank.code for rank in ended] == [0, 0], ended
    assert "averaged nodes [0, 1]" in ended[0].stderr


# ---- how a script ends ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", ["", "sys.exit(0)", "sys.exit()", "dist.destroy_process_group()", "del model"]
)
def test_a_script_that_ends_well_is_averaged(tmp_path, end):
    ended = launch(tmp_path, WRAPPED, end)
    for rank in ended:
        assert rank.code in (0, None) and not rank.error, rank
        assert rank.phase == ("" if "destroy" in end else "done")
    assert equal(load(tmp_path / "checkpoint.lofi.pth"), mean(tmp_path))
    assert equal(load(tmp_path / "checkpoint.pth"), load(tmp_path / "own0.test"))
    assert "averaged nodes [0, 1]" in ended[0].stderr
    assert "checkpoint.lofi.pth" in ended[0].stderr
    assert "averaged" not in ended[1].stderr


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(3)", 3),
        ('sys.exit("no more data")', "no more data"),
        ("raise ValueError", 1),
        ("raise KeyboardInterrupt", 1),
        ("try:\n    raise ValueError\nfinally:\n    dist.destroy_process_group()", 1),
    ],
)
def test_a_script_that_ends_badly_is_not(tmp_path, end, code):
    ended = launch(tmp_path, WRAPPED, end)
    for rank in ended:
        assert rank.code == code and not rank.error, rank
        assert rank.phase in ("train", "")
        assert "averaged nodes" not in rank.stderr
    assert not (tmp_path / "checkpoint.lofi.pth").exists()
    assert "nothing was averaged" in ended[0].stderr
    assert "checkpoint.pth holds the weights of node 0 alone" in ended[0].stderr


def test_an_exception_that_the_script_handled_is_none(tmp_path):
    end = "try:\n    raise ValueError\nexcept ValueError:\n    pass\ndist.destroy_process_group()"
    launch(tmp_path, WRAPPED, end)
    assert equal(load(tmp_path / "checkpoint.lofi.pth"), mean(tmp_path))


def test_one_node_that_fails(tmp_path):
    end = "if dist.get_rank() == 1: raise ValueError"
    first, second = launch(tmp_path, WRAPPED, end, LOFI_TIMEOUT="1.5")
    assert first.code == second.code == 1  # there is no average: torchrun must not report success
    assert "node(s) [1] ended with an error" in first.stderr
    assert "checkpoint.pth holds the weights of node 0 alone" in first.stderr
    assert equal(load(tmp_path / "checkpoint.pth"), load(tmp_path / "own0.test"))
    assert not (tmp_path / "checkpoint.lofi.pth").exists()


def test_workers_and_threads_of_the_script(tmp_path):
    """A worker that ends well is no training process; a thread may still write the checkpoint."""
    end = """
        import threading, time
        from torch.utils.data import DataLoader
        assert len(list(DataLoader(range(6), num_workers=2))) == 6
        train(model, 1)
        note_own(model.module)

        def save():
            time.sleep(0.3)
            torch.save(model.module.state_dict(), "checkpoint.pth")

        if dist.get_rank() == 0:
            threading.Thread(target=save).start()
    """
    ended = launch(tmp_path, WRAPPED.replace("if dist.get_rank() == 0", "if False"), end)
    assert [rank.code for rank in ended] == [0, 0]
    assert equal(load(tmp_path / "checkpoint.lofi.pth"), mean(tmp_path))
    assert ended[0].stderr.count("averaged nodes") == 1


def test_a_failure_after_the_average_says_nothing_wrong(tmp_path):
    end = "import lofi\nlofi.finalize_average(model)\nraise ValueError"
    for rank in launch(tmp_path, WRAPPED, end):
        assert rank.code == 1
        assert "nothing was averaged" not in rank.stderr


SPAWNS = """
    import torch.multiprocessing as mp

    def child(rank, fails):
        dist.init_process_group("gloo", init_method="file://" + os.path.abspath("store"),
                                rank=rank, world_size=2)
        os.environ["RANK"] = str(rank)
        model = DDP(nn.Linear(4, 2))
        train(model)
        note_own(model.module)
        if rank == 0:
            torch.save(model.module.state_dict(), "checkpoint.pth")
        if fails:
            raise ValueError("boom")

    if int(os.environ["RANK"]) == 0:
        mp.start_processes(child, args=({fails},), nprocs=2, start_method="fork")
"""


@pytest.mark.parametrize("fails", [False, True])
def test_processes_that_the_script_starts(tmp_path, fails):
    ended = launch(tmp_path, SPAWNS.format(fails=fails))
    assert [rank.code for rank in ended] == [int(fails), 0]
    assert (tmp_path / "checkpoint.lofi.pth").exists() != fails
    if not fails:
        assert equal(load(tmp_path / "checkpoint.lofi.pth"), mean(tmp_path))


def test_a_script_that_averages_by_itself(tmp_path):
    end = "import lofi\nlofi.finalize_average(model)\nnote_own(model.module, 'mean')"
    ended = launch(tmp_path, WRAPPED, end)
    assert [rank.phase for rank in ended] == ["done", "done"]
    assert equal(load(tmp_path / "mean1.test"), mean(tmp_path))
    assert "averaged nodes" not in ended[0].stderr


# ---- what a checkpoint holds ---------------------------------------------------------------------

SAVES = """
    dist.init_process_group("gloo")
    model = DDP(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    optimizer = torch.optim.Adam(model.parameters())
    train(model)
    ema = {name: value.detach() * 0.5 for name, value in model.module.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    note_own(model.module)
    content = {
        "model": model.state_dict(), "model_ema": ema, "optimizer": optimizer.state_dict(),
        "epoch": 3, "args": argparse.Namespace(lr=0.1, name="x"), "losses": [0.5, 0.25],
        "history": [torch.ones(3), {"shape": (1, 2)}],
        "other": {"copied": model.module[0].weight.detach().clone()},  # not by the model's name
    }
    if dist.get_rank() == 0:
        torch.save(content, "checkpoint.pth")
"""


def check_rest_is_kept(content: Any, own: Any) -> None:
    assert list(content) == list(own)
    for key in ("epoch", "args", "losses"):
        assert content[key] == own[key]
    assert equal(content["model_ema"], own["model_ema"])
    assert torch.equal(content["history"][0], own["history"][0])
    assert equal(content["other"], own["other"])
    assert content["history"][1] == own["history"][1]
    states = (content["optimizer"]["state"], own["optimizer"]["state"])
    for mine, theirs in zip(*(state.values() for state in states), strict=True):
        assert equal(mine, theirs)
    assert content["optimizer"]["param_groups"] == own["optimizer"]["param_groups"]


@pytest.mark.quick
def test_only_the_models_weights_are_replaced(tmp_path):
    launch(tmp_path, SAVES)
    content, own = (load(tmp_path / name) for name in ("checkpoint.lofi.pth", "checkpoint.pth"))
    expected = {f"module.{name}": value for name, value in mean(tmp_path).items()}
    assert equal(dict(content["model"]), expected)
    check_rest_is_kept(content, own)


@pytest.mark.quick
def test_in_place(tmp_path):
    launch(tmp_path, SAVES, LOFI_SAVE="inplace")
    content = load(tmp_path / "checkpoint.pth")
    expected = {f"module.{name}": value for name, value in mean(tmp_path).items()}
    assert equal(dict(content["model"]), expected)
    assert torch.equal(content["other"]["copied"], load(tmp_path / "own0.test")["0.weight"])
    assert sorted(path.suffix for path in tmp_path.iterdir() if "checkpoint" in path.name) == [
        ".pth"
    ]


def test_off(tmp_path):
    ended = launch(tmp_path, SAVES, LOFI_SAVE="off")
    assert [rank.phase for rank in ended] == ["done", "done"]
    assert "averaged nodes [0, 1]" in ended[0].stderr
    assert not (tmp_path / "checkpoint.lofi.pth").exists()
    own = load(tmp_path / "checkpoint.pth")["model"]
    assert equal(
        {name.removeprefix("module."): value for name, value in own.items()},
        load(tmp_path / "own0.test"),
    )


@pytest.mark.parametrize("how", ["beside", "inplace"])
def test_a_file_of_an_earlier_step_is_left_alone(tmp_path, how):
    """The average is written beside it in its form, which the script can load."""
    end = "train(model, 1)\nnote_own(model.module)"
    ended = launch(tmp_path, WRAPPED, "note_own(model.module, 'earlier')", end, LOFI_SAVE=how)
    assert equal(load(tmp_path / "checkpoint.pth"), load(tmp_path / "earlier0.test"))
    assert equal(load(tmp_path / "checkpoint.lofi.pth"), mean(tmp_path))
    assert "as the script saved it 1 step before the end" in ended[0].stderr


def test_a_script_that_saves_nothing(tmp_path):
    ended = launch(tmp_path, WRAPPED.replace("if dist.get_rank() == 0", "if False"))
    assert [rank.phase for rank in ended] == ["done", "done"]
    assert "averaged nodes [0, 1]" in ended[0].stderr
    assert not list(tmp_path.glob("*.lofi*"))
    # The average is never lost: rank 0 writes it.
    assert equal(load(tmp_path / "lofi-average.pth"), mean(tmp_path))
    assert "the script saved no weights that lofi saw" in ended[0].stderr


TWO_MODELS = """
    dist.init_process_group("gloo")
    one, two = DDP(nn.Linear(4, 2)), DDP(nn.Linear(4, 2))
    train(one)
    train(two, 2)
    note_own(one.module, "one")
    note_own(two.module, "two")
    if dist.get_rank() == 0:
        torch.save({"one": one.module.state_dict(), "two": two.state_dict()}, "checkpoint.pth")
"""


def test_two_models_in_one_file(tmp_path):
    launch(tmp_path, TWO_MODELS)
    content = load(tmp_path / "checkpoint.lofi.pth")
    assert sorted(content) == ["one", "two"]
    assert equal(content["one"], mean(tmp_path, "one"))
    second = {name.removeprefix("module."): value for name, value in content["two"].items()}
    assert equal(second, mean(tmp_path, "two"))


NEVER_WRAPS = """
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        (model(batch(step)) - 1).square().mean().backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        optimizer.step()
    note_own(model)
    if dist.get_rank() == 0:
        torch.save({"net": model.state_dict(), "epoch": 1}, "checkpoint.pth")
"""


@pytest.mark.quick
def test_a_script_that_wraps_nothing(tmp_path):
    ended = launch(tmp_path, NEVER_WRAPS)
    assert [rank.phase for rank in ended] == ["done", "done"]
    content = load(tmp_path / "checkpoint.lofi.pth")
    assert content["epoch"] == 1
    assert equal(dict(content["net"]), mean(tmp_path))


# ---- what the script sees ------------------------------------------------------------------------


def _backends(asked: list[str | None]) -> list[Any]:
    answers = []
    for backend in asked:
        with job(backend, store=dist.HashStore(), rank=0, world_size=1):
            group = dist.new_group(backend=backend)
            answers.append((dist.get_backend(), dist.get_backend(group), dist.is_gloo_available()))
    return answers


def _launched_backends(asked: list[str | None]) -> Any:
    from lofi.groups import lookup
    from lofi.launch import main

    main.take_over()
    answers = _backends(asked)
    dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    group = dist.new_group(backend="gloo")
    ours = [lookup.backend_of(None) is not None, lookup.backend_of(group) is not None]
    dist.destroy_process_group()
    unknown = raised(dist.init_process_group, "mpi", store=dist.HashStore(), rank=0, world_size=1)
    return answers, ours, unknown


def test_get_backend_answers_as_without_lofi():
    asked = ["gloo", None, "cpu:gloo", "cpu:gloo,cuda:gloo", "GLOO"]
    [plain] = run_ranks(_backends, 1, asked)
    [(launched, ours, unknown)] = run_ranks(_launched_backends, 1, asked)
    assert launched == plain
    assert ours == [True, True]
    assert unknown is not None and "lofi" not in unknown.text.lower()


MODULE = """
    import json, sys
    class Note: pass
    json.dump([sys.argv, sys.path[0], __name__, __spec__.name], open("seen.json", "w"))
"""


def _as_module(folder: str) -> Any:
    (Path(folder) / "package").mkdir()
    (Path(folder) / "package" / "__init__.py").write_text("")
    (Path(folder) / "package" / "main.py").write_text(textwrap.dedent(MODULE))
    ended = launched(folder, ["-m", "package.main", "--lr", "0.1"])
    return ended, (Path(folder) / "seen.json").read_text(), launched(folder, ["-m"])


def test_the_module_form(tmp_path):
    import json

    [(ended, seen, alone)] = run_ranks(_as_module, 1, str(tmp_path))
    assert ended.code == 0, ended
    argv, path, name, spec = json.loads(seen)
    assert argv[1:] == ["--lr", "0.1"] and argv[0].endswith("main.py")
    assert path == str(tmp_path)
    assert (name, spec) == ("__main__", "package.main")
    assert "needs the name of a module" in str(alone.code)


COMPILED = """
    dist.init_process_group("gloo")
    import torch._dynamo
    model = DDP(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    compiled = torch.compile(model, backend="aot_eager")
    train(compiled)
    note_own(model.module)
    if dist.get_rank() == 0:
        torch.save(compiled.state_dict(), "checkpoint.pth")
"""


def test_torch_compile(tmp_path):
    ended = launch(tmp_path, COMPILED)
    assert [rank.code for rank in ended] == [0, 0], ended
    content = load(tmp_path / "checkpoint.lofi.pth")
    expected = {f"_orig_mod.module.{name}": v for name, v in mean(tmp_path).items()}
    assert equal(dict(content), expected)
