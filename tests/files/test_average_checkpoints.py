# SPDX-License-Identifier: MIT
"""lofi.average_checkpoints: each format, against exact fractions rounded once."""

import argparse
import itertools
import signal
from pathlib import Path
from typing import Any

import lofi
import pytest
import torch
from harness import truth
from lofi.files import checkpoints
from safetensors.torch import load_file, save_file


def content(seed: int) -> dict[str, Any]:
    """What DeiT saves: nested, an EMA copy, an optimizer's state, a namespace, tied weights."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tied = tensor(4, 3)
    return {
        "model": {"embed": tied, "head": tied, "half": tensor(7, dtype=torch.bfloat16),
                  "norm.num_batches_tracked": torch.tensor(5)},
        "model_ema": {"embed": tensor(4, 3)},
        "optimizer": {"state": {0: {"exp_avg": tensor(4, 3), "step": torch.tensor(10.0)}},
                      "param_groups": [{"lr": 0.1 * (seed + 1), "params": [0]}]},
        "history": [tensor(2), (tensor(3), "text")],
        "epoch": seed,
        "args": argparse.Namespace(lr=seed),
    }  # fmt: skip


def saved(folder: Path, count: int = 3, suffix: str = ".pth") -> tuple[list[Path], list[Any]]:
    paths, contents = [], []
    for seed in range(count):
        paths.append(folder / f"{seed}{suffix}")
        contents.append(content(seed))
        torch.save(contents[-1], paths[-1])
    return paths, contents


def load(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.quick
def test_nested_files_of_torch_save(tmp_path):
    paths, contents = saved(tmp_path)
    lofi.average_checkpoints(paths, tmp_path / "out.pth")
    got = load(tmp_path / "out.pth")
    for get in (
        lambda c: c["model"]["embed"],
        lambda c: c["model"]["half"],
        lambda c: c["model_ema"]["embed"],
        lambda c: c["optimizer"]["state"][0]["exp_avg"],
        lambda c: c["history"][0],
        lambda c: c["history"][1][0],
    ):
        assert same(get(got), truth.mean([get(c) for c in contents]))
    assert got["model"]["embed"].data_ptr() == got["model"]["head"].data_ptr()
    assert got["model"]["norm.num_batches_tracked"].item() == 5
    assert got["epoch"] == 0 and got["args"] == argparse.Namespace(lr=0)
    assert got["optimizer"]["param_groups"] == contents[0]["optimizer"]["param_groups"]
    assert got["history"][1][1] == "text"


@pytest.mark.quick
def test_weights_base_and_dtype(tmp_path):
    paths, contents = saved(tmp_path)
    lofi.average_checkpoints(paths, tmp_path / "w.pt", weights=[1, 2.5, 0.25])
    of = [c["model"]["half"] for c in contents]
    assert same(load(tmp_path / "w.pt")["model"]["half"], truth.mean(of, [1, 2.5, 0.25]))
    lofi.average_checkpoints(paths[1:], tmp_path / "b.pt", base=paths[0], alpha=0.25)
    expected = truth.mean(of[1:], base=of[0], alpha=0.25)
    got = load(tmp_path / "b.pt")
    assert same(got["model"]["half"], expected)
    assert got["epoch"] == 1  # of the first of the averaged, not of the base
    lofi.average_checkpoints(paths, tmp_path / "d.pt", dtype="bfloat16")
    embeds = [c["model"]["embed"] for c in contents]
    exact = truth.mean([embed.double() for embed in embeds])
    assert same(load(tmp_path / "d.pt")["model"]["embed"], truth.rounded(exact, torch.bfloat16))


def test_the_bits_of_safetensors_and_of_torch_files_agree(tmp_path):
    options = [
        {}, {"weights": [3, 1]}, {"dtype": "float16"}, {"base": 2, "alpha": 0.3},
        {"only": "^[ab]$", "skip": "[^a]"},
    ]  # fmt: skip
    tensors = [
        {"a": torch.randn(1000).bfloat16(), "b": torch.randn(33, 5), "c": torch.randn(9).half()}
        for _ in range(3)
    ]
    for number, one in enumerate(tensors):
        torch.save(one, tmp_path / f"{number}.pt")
        save_file(one, tmp_path / f"{number}.safetensors")
    for number, option in enumerate(options):
        got = {}
        for suffix in ("pt", "safetensors"):
            how = dict(option)
            if "base" in how:
                how["base"] = tmp_path / f"{how['base']}.{suffix}"
            out = tmp_path / f"out{number}.{suffix}"
            lofi.average_checkpoints([tmp_path / f"{i}.{suffix}" for i in (0, 1)], out, **how)
            got[suffix] = load_file(out) if suffix == "safetensors" else load(out)
        for name in tensors[0]:
            assert same(got["pt"][name], got["safetensors"][name]), (option, name)


def test_only_and_skip(tmp_path):
    paths, contents = saved(tmp_path)
    lofi.average_checkpoints(paths, tmp_path / "o.pt", only=r"^model\.", skip="half")
    got = load(tmp_path / "o.pt")
    assert same(got["model"]["embed"], truth.mean([c["model"]["embed"] for c in contents]))
    assert same(got["model"]["half"], contents[0]["model"]["half"])
    assert same(got["model_ema"]["embed"], contents[0]["model_ema"]["embed"])


@pytest.mark.quick
def test_folders_of_distributed_checkpoint(tmp_path):
    import torch.distributed.checkpoint as dcp

    contents = []
    for seed in range(2):
        torch.manual_seed(seed)
        contents.append({"model": {"w": torch.randn(6, 4), "h": torch.randn(8).bfloat16()}})
        dcp.save(contents[-1], checkpoint_id=tmp_path / f"dcp{seed}", no_dist=True)
    lofi.average_checkpoints([tmp_path / "dcp0", tmp_path / "dcp1"], tmp_path / "out")
    got = {"model": {"w": torch.zeros(6, 4), "h": torch.zeros(8).bfloat16()}}
    dcp.load(got, checkpoint_id=tmp_path / "out", no_dist=True)
    for name in ("w", "h"):
        assert same(got["model"][name], truth.mean([c["model"][name] for c in contents]))


def saved_sharded(*paths: Path) -> None:
    import torch.distributed.checkpoint as dcp

    for path in paths:
        dcp.save({"w": torch.ones(2)}, checkpoint_id=path, no_dist=True)


def test_what_lies_in_a_replaced_folder_stays(tmp_path):
    inputs, out = [tmp_path / "a", tmp_path / "b"], tmp_path / "out"
    saved_sharded(*inputs, out)
    (out / "__7_0.distcp").write_bytes(b"of the old checkpoint")
    (out / "notes.txt").write_text("mine")
    (out / "sub" / "deep").mkdir(parents=True)
    (out / "sub" / "deep" / "more").write_text("mine")
    out.chmod(0o750)
    lofi.average_checkpoints(inputs, f"{out}/", force=True)
    names = {".metadata", "__0_0.distcp", "notes.txt", "sub"}
    assert {p.name for p in out.iterdir()} == names
    assert (out / "notes.txt").read_text() == (out / "sub" / "deep" / "more").read_text() == "mine"
    assert out.stat().st_mode & 0o777 == 0o750
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "out"]

    (out / "mine.distcp").mkdir()  # is not removed as a file of the checkpoint
    (out / "mine.distcp" / "kept").write_text("mine")
    with pytest.raises(
        RuntimeError, match=r"what was there before is in .*/\.lofi-[^/]+-old still"
    ):
        lofi.average_checkpoints(inputs, out, force=True)
    (old,) = tmp_path.glob(".lofi-*")
    assert (old / "mine.distcp" / "kept").read_text() == "mine"
    assert (out / "notes.txt").read_text() == "mine"
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(ValueError, match="is a link to a folder"):
        lofi.average_checkpoints(inputs, tmp_path / "link", force=True)


def test_what_cannot_be_renamed_leaves_the_old_folder(tmp_path, monkeypatch):
    inputs, out = [tmp_path / "a", tmp_path / "b"], tmp_path / "out"
    saved_sharded(*inputs, out)
    (out / "notes.txt").write_text("mine")
    rename = checkpoints.os.rename

    def refuse(source, target):
        if Path(source).name == "average":
            raise PermissionError(13, "no", source)
        rename(source, target)

    monkeypatch.setattr(checkpoints.os, "rename", refuse)
    with pytest.raises(PermissionError):
        lofi.average_checkpoints(inputs, out, force=True)
    assert {p.name for p in out.iterdir()} == {".metadata", "__0_0.distcp", "notes.txt"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "out"]


@pytest.mark.parametrize("force", [True, False])
def test_a_folder_that_another_has_made_meanwhile(tmp_path, monkeypatch, force):
    paths = [tmp_path / "a", tmp_path / "b"]
    saved_sharded(*paths)
    save, out = checkpoints.save, tmp_path / "out"

    def save_late(*arguments):
        saved_sharded(out)
        (out / "notes").write_text("x")
        save(*arguments)

    monkeypatch.setattr(checkpoints, "save", save_late)
    if force:
        lofi.average_checkpoints(paths, out, force=True)
    else:
        with pytest.raises(OSError, match="not empty"):
            lofi.average_checkpoints(paths, out)
    assert (out / "notes").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]


def test_mode_is_kept(tmp_path):
    paths, _ = saved(tmp_path, 2)
    out = tmp_path / "out.pt"
    lofi.average_checkpoints(paths, out)
    out.chmod(0o600)
    lofi.average_checkpoints(paths, out, force=True)
    assert out.stat().st_mode & 0o777 == 0o600


def test_files_from_before_torch_1_6(tmp_path):
    paths = [tmp_path / "0.pth", tmp_path / "1.pth"]
    for i, path in enumerate(paths):
        torch.save({"x": torch.full((2,), i)}, path, _use_new_zipfile_serialization=False)
    lofi.average_checkpoints(paths, tmp_path / "out.pth", integers="first")
    for i, path in enumerate(paths):
        torch.save({"x": torch.full((2,), 1.0 * i)}, path, _use_new_zipfile_serialization=False)
    lofi.average_checkpoints(paths, tmp_path / "out.pth", force=True)
    assert load(tmp_path / "out.pth")["x"].tolist() == [0.5, 0.5]
    torch.save(Evil(tmp_path / "touched"), paths[0], _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="can't be read safely"):
        lofi.average_checkpoints(paths, tmp_path / "new.pth")
    assert not (tmp_path / "touched").exists()


def test_one_path_is_no_list(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.safetensors", str(tmp_path / "a.safetensors")):
        with pytest.raises(TypeError, match=r"paths is .*a.safetensors.* a list of paths"):
            lofi.average_checkpoints(path, tmp_path / "out.safetensors")


def test_ctrl_c(tmp_path):
    path, folder = tmp_path / "large.safetensors", tmp_path / "out"
    save_file({"x": torch.ones(50_000_000, dtype=torch.bfloat16)}, path)
    folder.mkdir()

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            lofi.average_checkpoints([path] * 60, folder / "out.safetensors")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        path.unlink()
    assert not list(folder.iterdir())


def test_refusals_leave_nothing(tmp_path):
    paths, _ = saved(tmp_path)
    out = tmp_path / "out.pth"
    other = content(7)
    other["model"]["norm.num_batches_tracked"] = torch.tensor(6)
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"num_batches_tracked.*other.pth"):
        lofi.average_checkpoints([*paths, tmp_path / "other.pth"], out)
    assert not out.exists()
    lofi.average_checkpoints([*paths, tmp_path / "other.pth"], out, integers="first")
    assert load(out)["model"]["norm.num_batches_tracked"].item() == 5
    with pytest.raises(FileExistsError, match="force"):
        lofi.average_checkpoints(paths, out)
    before = out.read_bytes()
    for change, match in (
        (lambda c: c["model"].pop("half"), "has no tensor model.half"),
        (lambda c: c["model"].update(half=torch.zeros(3)), r"model.half is \[3\]"),
        (lambda c: c["model"].update(more=torch.zeros(3)), "has no tensor model.more"),
    ):
        bad = content(8)
        change(bad)
        torch.save(bad, tmp_path / "bad.pth")
        with pytest.raises(ValueError, match=match):
            lofi.average_checkpoints([*paths, tmp_path / "bad.pth"], out, force=True)
    (tmp_path / "garbage.pth").write_bytes(b"\x80\x04garbage")
    for inputs, how in (
        ([], {}),
        ([*paths, tmp_path / "missing.pth"], {}),
        ([*paths, tmp_path / "garbage.pth"], {}),
        (paths, {"weights": [1, 2]}),
        (paths, {"weights": [1, 2, -3]}),
        (paths, {"weights": [0, 0, 0]}),
        (paths, {"dtype": "float99"}),
        (paths, {"integers": "none"}),
    ):
        with pytest.raises((ValueError, FileNotFoundError)):
            lofi.average_checkpoints(inputs, out, force=True, **how)
    with pytest.raises(ValueError, match="new/ names a folder, and the output will be a file"):
        lofi.average_checkpoints(paths, f"{tmp_path}/new/")
    with pytest.raises(ValueError, match="is or holds the input"):
        lofi.average_checkpoints([out, *paths], out, force=True, integers="first")
    assert out.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_names_that_mislead(tmp_path):
    flat = {"w": torch.ones(2)}
    torch.save(flat, tmp_path / "flat.pt")
    torch.save({"model": flat, "epoch": 3}, tmp_path / "nested.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    save_file(flat, tmp_path / "a.safetensors")
    for name, out, match in (
        ("missing.pt", "o.pt", "missing.pt: there is no such file"),
        ("flat.pt", "no/o.pt", "no/o.pt: there is no folder"),
        ("a.safetensors", "o.pt", "o.pt is the name of a file of torch.save"),
        ("nested.pt", "o.safetensors", "nested.pt holds more than tensors by name"),
        ("module.pt", "o.pt", "module.pt can't be read safely.*Linear"),
        ("flat.pt", "o.safetensors", None),
    ):
        if match is None:
            lofi.average_checkpoints([tmp_path / name], tmp_path / out)
            continue
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            lofi.average_checkpoints([tmp_path / name], tmp_path / out)
        assert not (tmp_path / out).exists()
    assert torch.equal(load_file(tmp_path / "o.safetensors")["w"], flat["w"])
    lofi.average_checkpoints([tmp_path / "flat.pt"], tmp_path / "o.pt", skip="", only="")
    assert torch.equal(load(tmp_path / "o.pt")["w"], flat["w"])
    with pytest.raises(ValueError, match="only has a NUL"):
        lofi.average_checkpoints([tmp_path / "flat.pt"], tmp_path / "p.pt", only="w\0")


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"w": torch.ones(2), "x": Evil(tmp_path / "touched")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt can't be read safely"):
        lofi.average_checkpoints([tmp_path / "evil.pt"], tmp_path / "out.pt")
    assert not (tmp_path / "touched").exists()


def test_order_matters_only_as_it_says(tmp_path):
    paths, contents = saved(tmp_path)
    for order in itertools.permutations(range(3)):
        out = tmp_path / f"{order}.pt"
        lofi.average_checkpoints([paths[i] for i in order], out)
        expected = truth.mean([contents[i]["model"]["embed"] for i in order])
        assert same(load(out)["model"]["embed"], expected)


def test_odd_contents(tmp_path):
    zero = torch.zeros(2)
    torch.save({"emb": zero, "head": zero}, tmp_path / "tied.pt")
    torch.save({"emb": torch.full((2,), 2.0), "head": torch.full((2,), 100.0)}, tmp_path / "u.pt")
    lofi.average_checkpoints([tmp_path / "tied.pt", tmp_path / "u.pt"], tmp_path / "o.pt")
    assert load(tmp_path / "o.pt")["head"].tolist() == [50, 50]

    torch.save({"m.w": torch.ones(1), "m": {"w": torch.ones(1)}}, tmp_path / "twice.pt")
    torch.save({"x": torch.eye(2).to_sparse()}, tmp_path / "sparse.pt")
    torch.save({"x": torch.ones(2, dtype=torch.int64)}, tmp_path / "int.pt")
    torch.save({"x": torch.ones(2)}, tmp_path / "float.pt")
    for names, how, match in (
        (["twice"], {}, "two tensors whose path is m.w"),
        (["sparse"], {}, "x of .* without dense data"),
        (["float", "int"], {}, r"x is torch.int64 in .*int.pt"),
        (["float"], {"dtype": "int64"}, "dtype is 'int64'"),
        (["float"], {"base": tmp_path / "float.pt"}, "base and alpha belong together"),
        (["float"], {"alpha": 0.5}, "base and alpha belong together"),
        (["float"], {"weights": [-1]}, "^lofi: x of .*float.pt and others: weight"),
        (["float"], {"only": "y"}, "none of its tensors is selected"),
        (["float"], {"skip": r"\d"}, "skip.* not POSIX"),
    ):
        with pytest.raises(ValueError, match=match):
            lofi.average_checkpoints(
                [tmp_path / f"{n}.pt" for n in names], tmp_path / "p.pt", **how
            )
        assert not (tmp_path / "p.pt").exists()

    for dtype in (torch.bfloat16, "bf16", "BF16", "bfloat16"):
        lofi.average_checkpoints(
            [tmp_path / "float.pt"], tmp_path / "p.pt", dtype=dtype, force=True
        )
        assert load(tmp_path / "p.pt")["x"].dtype == torch.bfloat16
    parameter = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    torch.save({"x": parameter, "pair": (parameter, 1)}, tmp_path / "parameter.pt")
    lofi.average_checkpoints([tmp_path / "parameter.pt"], tmp_path / "p.pt", force=True)
    for value in (load(tmp_path / "p.pt")["x"], load(tmp_path / "p.pt")["pair"][0]):
        assert type(value) is torch.nn.Parameter and not value.requires_grad

    conjugate = torch.tensor([2 + 4j]).conj()
    torch.save({"z": conjugate}, tmp_path / "z.pt")
    lofi.average_checkpoints([tmp_path / "z.pt"] * 2, tmp_path / "zz.pt")
    assert load(tmp_path / "zz.pt")["z"].item() == 2 - 4j
    lofi.average_checkpoints([tmp_path / "z.pt"], tmp_path / "zzz.pt", dtype="float32")
    assert load(tmp_path / "zzz.pt")["z"].item() == 2 - 4j


def test_folders_that_hold_inputs_are_not_replaced(tmp_path):
    import torch.distributed.checkpoint as dcp

    for name in ("run/a", "run/b", "old"):
        dcp.save({"w": torch.ones(2)}, checkpoint_id=tmp_path / name, no_dist=True)
    inputs = [tmp_path / "run/a", tmp_path / "run/b"]
    with pytest.raises(ValueError, match="holds the input"):
        lofi.average_checkpoints(inputs, tmp_path / "run", force=True)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="is not a folder"):
        lofi.average_checkpoints(inputs, tmp_path / "mine", force=True)
    lofi.average_checkpoints(inputs, tmp_path / "old", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "old", "run"]
