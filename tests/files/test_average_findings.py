# SPDX-License-Identifier: MIT
"""Numbers that an average should not have are named: NaN, infinities, what its dtype can't hold."""

import json
from pathlib import Path

import numpy as np
import pytest
from harness import checkpoints as ck
from harness.checkpoints import Tensor, lofi, read, write, write_shards

pytestmark = pytest.mark.skipif(
    not Path(ck.LOFI).exists(), reason="the program lofi is not built: bash ci/c.sh gcc"
)

SPOILT = 3  # the exit code
# Halfway from the largest number to the next that there would be: from there on it is rounded to
# infinity, whose last bit is even; in E4M3 beyond there only, since 448 is the even one.
HALFWAY = {
    "F16": "0x1.ffep15",
    "BF16": "0x1.ffp127",
    "F32": "0x1.ffffffp127",
    "F8_E5M2": "0x1.ep15",
}
FITS = {kind: np.nextafter(float.fromhex(text), 0) for kind, text in HALFWAY.items()}
FITS["F8_E4M3"] = 464.0


@pytest.fixture
def paths(tmp_path):
    def make(*inputs):
        made = []
        for i, tensors in enumerate(inputs):
            made.append(tmp_path / f"run{i}.safetensors")
            write(made[-1], tensors)
        return made

    return make


def average(*arguments, code):
    done = lofi("average", *arguments, "--json", code=code)
    told = json.loads(done.stdout)
    return told["nonfinite"], told["overflowed"], done.stderr


def spoil(rng, data):
    """Puts NaN and infinities into some places."""
    flat = data.reshape(-1)
    at = rng.choice(flat.size, min(flat.size, 7), replace=False)
    flat[at] = rng.choice([np.nan, np.inf, -np.inf], at.size)
    return data


def expected(inputs, to=None, weights=None):
    """By brute force: for each tensor and input how many are not finite, and how many averages are
    not although all that they are of is."""
    weights = weights or [1] * len(inputs)
    nonfinite, overflowed = {}, {}
    for name, first in inputs[0].items():
        data = [i[name].data for i in inputs]
        counting = [d for d, w in zip(data, weights, strict=True) if w != 0]
        finite = np.all([np.isfinite(d) for d in counting], axis=0)
        common = np.all([d == counting[0] for d in counting], axis=0) & np.isinf(counting[0])
        for number, (d, w) in enumerate(zip(data, weights, strict=True)):
            bad = ~np.isfinite(d)
            if w != 0:
                bad &= ~common
            if bad.any():
                nonfinite[name, number] = int(bad.sum())
        exact = np.abs(ck.mean(data, weights))
        large = finite & ~(exact <= FITS.get(to or first.kind, np.finfo(np.float64).max))
        if large.any():
            overflowed[name] = int(large.sum())
    return nonfinite, overflowed


def compared(found, inputs):
    numbers = {str(path): number for number, path in enumerate(inputs)}
    nonfinite, overflowed, _ = found
    for one in nonfinite:
        assert one["file"] == one["input"]
    by_input = {(one["tensor"], numbers[one["input"]]): one["count"] for one in nonfinite}
    assert len(by_input) == len(nonfinite)
    return by_input, {one["tensor"]: one["count"] for one in overflowed}


@pytest.mark.parametrize("to", [None, *ck.FLOATS])
@pytest.mark.parametrize("kind", ck.FLOATS)
def test_counts(paths, tmp_path, kind, to):
    rng = np.random.default_rng(ck.FLOATS.index(kind))
    inputs = []
    for _ in range(3):
        wide = rng.standard_normal((300, 500)) * np.exp2(rng.integers(-9, 9, (300, 500)))
        large = rng.standard_normal((70, 90)) * np.exp2(rng.integers(-9, 18, (70, 90)))
        data = {"wide": spoil(rng, wide), "large": large, "good": rng.standard_normal(9)}
        inputs.append({name: Tensor.of(kind, values) for name, values in data.items()})
    made, out = paths(*inputs), tmp_path / "out.safetensors"
    options = ["--dtype", to] if to else []
    found = average(*made, "-o", out, *options, code=SPOILT)
    assert compared(found, made) == expected(inputs, to)


@pytest.mark.quick
def test_a_nan_in_one_input(paths, tmp_path):
    good, bad = Tensor.of("F32", [1.0, 2.0, 3.0]), Tensor.of("F32", [1.0, np.nan, -np.inf])
    made = paths({"v": good, "w": good}, {"v": good, "w": bad})
    out = tmp_path / "out.safetensors"
    nonfinite, overflowed, told = average(*made, "-o", out, code=SPOILT)
    assert nonfinite == [{"tensor": "w", "input": str(made[1]), "file": str(made[1]),
                          "averaged": True, "count": 2}]  # fmt: skip
    assert overflowed == []
    (line,) = told.splitlines()
    assert str(made[1]) in line and "'w'" in line and "2 of 3" in line
    assert read(out)["w"].same(Tensor.of("F32", [1.0, np.nan, -np.inf]))
    quiet = lofi("average", *made, "-o", out, "-f", "--quiet", code=SPOILT)
    assert quiet.stdout == quiet.stderr == ""


@pytest.mark.parametrize("options", [["-w", "1,0,1"], ["-w", "0,0,2"], ["-w", "2,0,0"]])
def test_weight_0_spoils_nothing(paths, tmp_path, options):
    rng = np.random.default_rng(0)
    clean = [{"w": Tensor.of("F32", rng.standard_normal(70000))} for _ in range(3)]
    spoilt = {"w": Tensor.of("F32", spoil(rng, rng.standard_normal(70000)))}
    weights = [float(w) for w in options[1].split(",")]
    out = tmp_path / "out.safetensors"
    made = paths(clean[0], spoilt, clean[2])
    nonfinite, _, told = average(*made, "-o", out, "--verify", *options, code=0)
    assert [(one["input"], one["count"], one["averaged"]) for one in nonfinite] == [
        (str(made[1]), 7, False)
    ]
    assert str(made[1]) in told and "left out" in told
    kept = [(run["w"].data, w) for run, w in zip(clean, weights, strict=True) if w]
    mean = ck.mean([data for data, _ in kept], [w for _, w in kept])
    assert read(out)["w"].same(Tensor.of("F32", mean))


def test_alpha_leaves_out_the_other_side(paths, tmp_path):
    good = {"w": Tensor.of("F32", [1.0, 2.0])}
    bad = {"w": Tensor.of("F32", [np.nan, np.inf])}
    out = tmp_path / "out.safetensors"
    for inputs, base, alpha in (([bad, bad], good, 0), ([good, good], bad, 1)):
        made = paths(*inputs, base)
        options = ["--base", made[-1], "--alpha", alpha, "-o", out, "-f", "--verify"]
        nonfinite, _, _ = average(*made[:-1], *options, code=0)
        assert {one["averaged"] for one in nonfinite} == {False}
        assert {one["input"] for one in nonfinite} == {
            str(path) for path, run in zip(made, [*inputs, base], strict=True) if run is bad
        }
        assert read(out)["w"].same(good["w"])


@pytest.mark.parametrize("kind", ["F16", "F8_E4M3", "F8_E5M2", "BF16", "F32"])
def test_what_the_dtype_can_hold_is_no_finding(paths, tmp_path, kind):
    most = FITS[kind]
    (path,) = paths({"w": Tensor("F64", np.array([most, -most, np.nextafter(most, np.inf)]))})
    out = tmp_path / "out.safetensors"
    _, overflowed, told = average(path, "-o", out, "--dtype", kind, code=SPOILT)
    assert overflowed == [{"tensor": "w", "count": 1}]
    assert str(out) in told and kind in told and "1 of 3" in told
    (path,) = paths({"w": Tensor("F64", np.array([most, -most]))})
    assert average(path, "-o", out, "-f", "--dtype", kind, code=0) == ([], [], "")


def test_a_sum_that_overflows(paths, tmp_path):
    large = {"w": Tensor("F64", np.array([1.7e308, 1.0]))}
    made, out = paths(large, large), tmp_path / "out.safetensors"
    assert average(*made, "-o", out, code=SPOILT)[:2] == ([], [{"tensor": "w", "count": 1}])


def test_a_mask_of_infinities_is_none(paths, tmp_path):
    """GPT's files have such: the same in all, and in the average."""
    mask = {"mask": Tensor.of("F32", [0.0, -np.inf, -np.inf]), "w": Tensor.of("F32", [1.0])}
    made, out = paths(mask, mask), tmp_path / "out.safetensors"
    assert average(*made, "-o", out, code=0) == ([], [], "")
    assert read(out)["mask"].same(mask["mask"])
    # One that the base has and an average extrapolates is not what it was.
    options = ["--base", made[0], "--alpha", "1.5"]
    nonfinite, _, _ = average(*made, "-o", out, "-f", *options, code=SPOILT)
    assert [one["count"] for one in nonfinite] == [2, 2, 2]


def test_in_a_shard_of_a_folder(tmp_path):
    good, bad = Tensor.of("BF16", [1.0]), Tensor.of("BF16", [np.inf])
    write_shards(tmp_path / "a", [{"v": good}, {"w": good}])
    write_shards(tmp_path / "b", [{"v": good}, {"w": bad}])
    nonfinite, _, told = average(
        tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out", code=SPOILT
    )
    shard = str(tmp_path / "b" / "model-00002-of-00002.safetensors")
    assert [(one["input"], one["file"]) for one in nonfinite] == [(str(tmp_path / "b"), shard)]
    assert shard in told


def test_many_are_not_all_logged(paths, tmp_path):
    names = [f"w{number:02}" for number in range(30)]
    bad = {name: Tensor.of("F32", [np.nan]) for name in names}
    nonfinite, _, told = average(*paths(bad), "-o", tmp_path / "out.safetensors", code=SPOILT)
    assert [one["tensor"] for one in nonfinite] == names
    assert len(told.splitlines()) == 11 and "20 more" in told.splitlines()[-1]


def test_what_is_copied_is_as_it_was(paths, tmp_path):
    inputs = {"mean": Tensor.of("F32", [1.0]), "copied": Tensor.of("F32", [np.nan])}
    made, out = paths(inputs, inputs), tmp_path / "out.safetensors"
    assert average(*made, "-o", out, "--skip", "copied", code=0) == ([], [], "")
