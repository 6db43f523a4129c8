# SPDX-License-Identifier: MIT
"""Files of torch.save: numbers that spoil an average, names of wrappers, tied weights; what else
they may hold, and what is no such file."""

import argparse
import collections
import datetime
import decimal
import pathlib
import pickle
import random
import types
import uuid

import lofi
import numpy as np
import pytest
import torch
from harness import truth
from lofi.files.contents import load_pickled
from safetensors.torch import save_file


def same(a, b) -> bool:
    """They are of one type, with the same in it."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        is_alike = a.dtype == b.dtype and a.shape == b.shape
        return is_alike and all(map(same, a.reshape(-1).tolist(), b.reshape(-1).tolist()))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        factories = [getattr(one, "default_factory", None) for one in (a, b)]
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a) and len({*factories}) == 1
    if isinstance(a, (list, tuple, collections.deque)):
        return len(a) == len(b) and all(map(same, a, b)) and str(a)[-12:] == str(b)[-12:]
    if isinstance(a, (argparse.Namespace, types.SimpleNamespace)):
        return same(vars(a), vars(b))
    return a == b


@pytest.fixture
def files(tmp_path):
    made = []

    def make(*contents):
        paths = []
        for content in contents:
            paths.append(tmp_path / f"run{len(made)}.pt")
            made.append(paths[-1])
            torch.save(content, paths[-1])
        return paths

    return make


def average(paths, out, **how):
    lofi.average_checkpoints(paths, out, force=True, **how)
    return load_pickled(str(out))


# ---- numbers

NAN, INF = float("nan"), float("inf")


@pytest.mark.quick
def test_numbers_that_spoil_are_named(files, tmp_path, capfd):
    good = torch.tensor([1.0, 2.0, 3.0, -INF])
    bad = torch.tensor([1.0, NAN, INF, -INF])  # the last one is in both: a mask
    paths = files({"m": {"v": good, "w": good}}, {"m": {"v": good, "w": bad}})
    got = average(paths, tmp_path / "out.pt")
    assert str(got["m"]["w"].tolist()) == str([1.0, NAN, INF, -INF])
    (line,) = capfd.readouterr().err.splitlines()
    assert str(paths[1]) in line and "'m.w'" in line and "2 of 4" in line


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn",
                                   "float8_e5m2", "complex64"])  # fmt: skip
def test_counts(files, tmp_path, capfd, dtype):
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(1_500_000, 2, dtype=torch.float64, generator=generator) * 200
    inputs = [wide.clone(), wide.flip(0)]
    for i, value in enumerate((NAN, INF)):
        at = torch.randperm(len(wide), generator=generator)[: 7 + i]
        inputs[i][at, 0] = value
    if dtype == "complex64":
        paths = files(*({"w": torch.view_as_complex(one).cfloat()} for one in inputs))
        inputs, how = [one.float().double() for one in inputs], {}
    else:
        paths, how = files(*({"w": one} for one in inputs)), {"dtype": dtype}
    average(paths, tmp_path / "out.pt", **how)
    lines = capfd.readouterr().err.splitlines()
    total = wide.numel()
    for i, line in enumerate(lines[:2]):
        bad = int((~inputs[i].isfinite()).sum())
        assert str(paths[i]) in line and f"({bad} of {total} numbers)" in line
    finite = inputs[0].isfinite() & inputs[1].isfinite()
    exact = truth.formula(inputs)[finite].abs()
    large = int((exact > 464).sum()) if dtype == "float8_e4m3fn" else 0
    assert len(lines) == 2 + (large > 0)
    if large:
        assert f"beyond the range of {dtype} ({large} of {total} numbers)" in lines[2]


def test_overflow_by_dtype(files, tmp_path, capfd):
    paths = files({"w": torch.tensor([70000.0, 1.0])})
    assert average(paths, tmp_path / "o.pt", dtype="float16")["w"].tolist() == [INF, 1]
    assert "beyond the range of float16 (1 of 2 numbers)" in capfd.readouterr().err
    average(paths, tmp_path / "o.pt", dtype="bfloat16")
    assert capfd.readouterr().err == ""
    large = files(*[{"w": torch.tensor([1.7e308], dtype=torch.float64)}] * 2)
    average(large, tmp_path / "o.pt")
    assert "beyond the range of float64" in capfd.readouterr().err


def test_what_has_the_factor_0_spoils_nothing(files, tmp_path, capfd):
    good, bad = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([NAN, INF])}
    first, spoilt = files(good, bad)
    for paths, how in (
        ([first, spoilt], {"weights": [1, 0]}),
        ([spoilt, first], {"weights": [0, 2]}),
        ([spoilt], {"base": first, "alpha": 0.0}),
        ([first], {"base": spoilt, "alpha": 1.0}),
    ):
        assert torch.equal(average(paths, tmp_path / "o.pt", **how)["w"], good["w"]), how
        (line,) = capfd.readouterr().err.splitlines()
        assert str(spoilt) in line and "left out" in line and "2 of 2" in line


def test_safetensors_by_the_same_call(tmp_path, capfd):
    for i, value in enumerate((1.0, NAN)):
        save_file({"w": torch.tensor([value, 2.0])}, tmp_path / f"{i}.safetensors")
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    lofi.average_checkpoints(paths, tmp_path / "o.safetensors")
    assert str(paths[1]) in capfd.readouterr().err


# ---- names


def model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def mean_of(*seeds: int) -> dict:
    return truth.mean_of_states(*(model(seed).state_dict() for seed in seeds))


@pytest.mark.quick
@pytest.mark.parametrize("wrapper", ["DataParallel", "compile", "both"])
@pytest.mark.parametrize("wrapped", [0, 1])
def test_a_wrapper(files, tmp_path, wrapper, wrapped):
    def wrap(module):
        if wrapper != "compile":
            module = torch.nn.DataParallel(module)
        return torch.compile(module) if wrapper != "DataParallel" else module

    prefix = {"DataParallel": "module.", "compile": "_orig_mod.", "both": "_orig_mod.module."}
    states = [
        (wrap(model(seed)) if seed == wrapped else model(seed)).state_dict() for seed in range(2)
    ]
    paths = files(*({"model": state, "epoch": 3} for state in states))
    with pytest.raises(ValueError, match="strip_prefix") as told:
        lofi.average_checkpoints(paths, tmp_path / "o.pt")
    assert repr(prefix[wrapper]) in str(told.value) and str(paths[wrapped]) in str(told.value)
    one_by_one = ["module.", "_orig_mod."] if wrapper == "both" else prefix[wrapper]
    for how in (prefix[wrapper], one_by_one):
        got = average(paths, tmp_path / "o.pt", strip_prefix=how)
        assert same(dict(got["model"]), mean_of(0, 1)) and got["epoch"] == 3
        model(5).load_state_dict(got["model"], strict=True)
        assert got["model"]._metadata["1"]["version"] == 2  # of BatchNorm


def test_prefixes_that_are_nowhere(files, tmp_path):
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    paths = files(state)
    for prefix in ("module.", "c.", "", ["b"], [3]):
        with pytest.raises(ValueError, match="strip_prefix"):
            lofi.average_checkpoints(paths, tmp_path / "o.pt", strip_prefix=prefix)
        assert not (tmp_path / "o.pt").exists()


def test_prefixes_in_safetensors(tmp_path):
    save_file({"module.w": torch.ones(2)}, tmp_path / "a.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "b.safetensors")
    paths, out = (
        [tmp_path / "a.safetensors", tmp_path / "b.safetensors"],
        tmp_path / "o.safetensors",
    )
    with pytest.raises(ValueError, match=r"all names in .*begin with 'module[.]'"):
        lofi.average_checkpoints(paths, out)
    lofi.average_checkpoints(paths, out, strip_prefix="module.")
    from safetensors.torch import load_file

    assert same(load_file(out), {"w": torch.full((2,), 0.5)})


def tied(seed: int) -> dict:
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    return {"embed": weight, "norm": torch.full((3,), float(seed)), "lm_head": weight}


@pytest.mark.parametrize("lacks", [0, 1])
@pytest.mark.parametrize("how", ["shared", "copied"])
def test_tied_weights(files, tmp_path, capfd, lacks, how):
    runs = [tied(1), tied(2)]
    if how == "copied":
        runs[1 - lacks]["lm_head"] = runs[1 - lacks]["embed"].clone()
    del runs[lacks]["lm_head"]
    paths = files(*({"model": run} for run in runs))
    got = average(paths, tmp_path / "o.pt")["model"]
    (line,) = capfd.readouterr().err.splitlines()
    assert "model.lm_head" in line and "tied to model.embed" in line and str(paths[lacks]) in line
    whole = truth.mean_of_states(tied(1), tied(2))
    assert same(got, {name: whole[name] for name in runs[0]})


@pytest.mark.parametrize("lacks", [0, 1])
@pytest.mark.parametrize("change", [
    lambda run: run["lm_head"].flatten()[-1:].add_(1) and None,
    lambda run: run.update(lm_head=run["embed"].T.contiguous()),
    lambda run: run.update(lm_head=run["embed"].double()),
    lambda run: run.update(lm_head=torch.zeros(4, 3), embed=torch.zeros(4, 3)),
])  # fmt: skip
def test_not_tied(files, tmp_path, lacks, change):
    runs = [tied(1), tied(2)]
    runs[1 - lacks]["lm_head"] = runs[1 - lacks]["embed"].clone()
    change(runs[1 - lacks])
    del runs[lacks]["lm_head"]
    paths = files(*runs)
    with pytest.raises(ValueError, match=f"{paths[lacks]} has no tensor lm_head"):
        lofi.average_checkpoints(paths, tmp_path / "o.pt")
    assert not (tmp_path / "o.pt").exists()


# ---- what else is in a file

NOW = datetime.datetime.now(datetime.UTC)
HARMLESS = {
    "numbers": [np.float64(1.5), np.float32(2), np.int64(3), np.uint8(4), np.bool_(True)],
    "texts of numpy": [np.str_("größe"), np.bytes_(b"abc"), np.array(["a", "bb"])],
    "arrays": [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))],
    "odd arrays": [np.zeros((0, 3)), np.array(3.5), np.arange(3, dtype=">i4")],
    "objects": np.array([1, "a", None, np.float32(2), np.arange(2)], dtype=object),
    "dtypes": [np.dtype("float32"), np.dtype(">i8"), np.float32, np.ndarray],
    "times of numpy": [np.datetime64("2020-01-01"), np.timedelta64(5, "h")],
    "array of times": np.array(["2020-01-01T01:02:03"], dtype="M8[ms]"),
    "namespace": argparse.Namespace(
        lr=np.float64(0.1), out=pathlib.Path("a/b"), seeds=np.arange(2)
    ),
    "simple namespace": types.SimpleNamespace(a=1),
    "paths": [pathlib.Path("a/b"), pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("c:/x")],
    "times": [NOW, NOW.date(), NOW.time(), datetime.timedelta(1), datetime.UTC],
    "history": collections.defaultdict(list, {"loss": [np.float64(1), 2.0], "more": []}),
    "default dict": collections.defaultdict(None, {"a": 1}),
    "deque": collections.deque([1, np.int32(2)], 5),
    "ordered": collections.OrderedDict(a=np.arange(2)),
    "counter": collections.Counter("aab"),
    "others": [frozenset([1]), {1, 2}, 1j, b"", b"a", decimal.Decimal("1.5"), slice(1, 2)],
    "types": [int, float, list, torch.float16, torch.device("cpu"), torch.Size([1])],
    "version": torch.__version__,
    "id": uuid.uuid4(),
    "random": [random.getstate(), np.random.get_state()],
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("is_zip", [True, False])
def test_what_is_harmless_is_read_and_written(tmp_path, name, is_zip):
    content = {"w": torch.ones(2), "extra": HARMLESS[name]}
    path = tmp_path / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    lofi.average_checkpoints([path, path], tmp_path / "o.pt")
    got, expected = (torch.load(one, weights_only=False) for one in (tmp_path / "o.pt", path))
    assert same(got, expected), (got, expected)


def test_all_at_once(files, tmp_path):
    shared = np.arange(3.0)
    content = {"w": torch.ones(2), **HARMLESS, "shared": [shared, {"x": shared}]}
    paths = files(content)
    got = average(paths, tmp_path / "o.pt")
    assert same(
        torch.load(tmp_path / "o.pt", weights_only=False), torch.load(paths[0], weights_only=False)
    )
    assert got["shared"][0] is got["shared"][1]["x"]


class Called:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class Built:
    def __init__(self, function, arguments, state):
        self.call = (function, arguments, state)

    def __reduce__(self):
        return self.call


RECONSTRUCT = np.zeros(1).__reduce__()[0]
SCALAR = np.float64(1).__reduce__()[0]


@pytest.mark.parametrize("evil", [
    lambda path: Called(pathlib.Path.touch, path),
    lambda path: Called(eval, f"open({str(path)!r}, 'w')"),
    lambda path: Called(collections.defaultdict, Called(getattr, path, "touch")),
    lambda path: np.zeros(2, dtype=[("a", "f4"), ("b", "O")]),
    # Flags that say there are no objects in it, and bytes that would be addresses of them.
    lambda path: Called(SCALAR, Built(np.dtype, ("O8", False, True),
                        (3, "|", None, None, None, -1, -1, 0)), b"\\1" * 8),
    lambda path: Built(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False,
                       b"\\1" * 8)),
    lambda path: Built(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (99,), np.dtype("f8"), False,
                       b"\\1" * 8)),
    lambda path: Called(np.dtype, "O8,f4"),
    lambda path: Called(np.ndarray, (10**12,)),
    lambda path: Called(bytes, 10**12),
    lambda path: np.random.RandomState(0),
    lambda path: torch.nn.Linear(1, 1),
])  # fmt: skip
def test_what_is_not_harmless_is_refused(files, tmp_path, evil):
    touched = tmp_path / "touched"
    paths = files({"w": torch.ones(2), "x": evil(touched)})
    with pytest.raises(ValueError, match=r"run0[.]pt can't be read safely"):
        lofi.average_checkpoints(paths, tmp_path / "o.pt")
    assert not touched.exists() and not (tmp_path / "o.pt").exists()


def test_all_that_is_refused_is_named(files, tmp_path):
    rest = {"a": collections.ChainMap(), "b": torch.nn.Linear(1, 1), "c": np.float64(1)}
    with pytest.raises(ValueError, match=r"ChainMap.*torch.nn.modules.linear.Linear") as told:
        lofi.average_checkpoints(files({"w": torch.ones(2), **rest}), tmp_path / "o.pt")
    assert "numpy" not in str(told.value) and "\n" not in str(told.value)


# ---- what is no such file


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b'{"error": "Repository not found"}', "Repository not found"),
        (b"GGUF\3\0\0\0", "llama.cpp"),
        (b"\x89HDF\r\n\x1a\n", "Keras"),
        (b"", "too few"),
        (bytes(5000), "unfinished"),
        (b"PK\3\4 and no more", "cut short"),
        (pickle.dumps({"w": 1}), "can't be read safely"),
    ],
)
def test_other_files(tmp_path, content, sentence):
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    torch.save({"w": torch.ones(1)}, good)
    bad.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as told:
        lofi.average_checkpoints([good, bad], tmp_path / "o.pt")
    assert str(bad) in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "o.pt").exists()


def test_a_file_of_safetensors_by_another_name(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"ends in [.]safetensors"):
        lofi.average_checkpoints([tmp_path / "a.pt"], tmp_path / "o.pt")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2]])
def test_no_tensors(files, tmp_path, content):
    with pytest.raises(ValueError, match="has no tensors"):
        lofi.average_checkpoints(files(content, content), tmp_path / "o.pt")
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="has no tensors"):
        lofi.average_checkpoints([tmp_path / "a.safetensors"], tmp_path / "o.safetensors")


def test_a_folder_of_torch_files(files, tmp_path):
    (tmp_path / "run").mkdir()
    files({"w": torch.ones(1)})[0].rename(tmp_path / "run" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model[.]bin.*average_checkpoints"):
        lofi.average_checkpoints([tmp_path / "run"], tmp_path / "out")
