# SPDX-License-Identifier: MIT
"""Names that differ between checkpoints: prefixes of wrappers, and weights that are tied."""

import json
from pathlib import Path

import numpy as np
import pytest
from harness import checkpoints as ck
from harness.checkpoints import Tensor, header_of, lofi, read, write, write_shards

pytestmark = pytest.mark.skipif(
    not Path(ck.LOFI).exists(), reason="the program lofi is not built: bash ci/c.sh gcc"
)

NAMES = ["fc.weight", "fc.bias", "head.weight", "module.x"]


def model(seed, names=NAMES, kind="F32"):
    rng = np.random.default_rng(seed)
    return {name: Tensor.of(kind, rng.standard_normal((5, 7))) for name in names}


def with_prefix(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def files(folder, *runs):
    paths = [folder / f"run{i}.safetensors" for i in range(len(runs))]
    for path, run in zip(paths, runs, strict=True):
        write(path, run)
    return paths


def check_mean(path, *runs):
    found = read(path)
    assert list(found) == list(runs[0])
    for name, tensor in found.items():
        assert tensor.same(Tensor.of(tensor.kind, ck.mean([r[name].data for r in runs]))), name


def refused(*arguments):
    done = lofi("average", *arguments, check=False)
    assert done.returncode in (1, 2) and done.stderr.count("\n") == 1, done
    return done.stderr


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.encoder.", "module._orig_mod."])
@pytest.mark.parametrize("has", ["first", "second", "both"])
def test_a_prefix(tmp_path, prefix, has):
    plain = [model(0), model(1)]
    runs = [
        with_prefix(prefix, run) if has in (word, "both") else run
        for run, word in zip(plain, ("first", "second"), strict=True)
    ]
    paths, out = files(tmp_path, *runs), tmp_path / "out.safetensors"
    if has != "both":
        told = refused(*paths, "-o", out)
        assert f"--strip-prefix {prefix} " in told and str(paths[has == "second"]) in told
        assert told.count("--strip-prefix") == 1 and not out.exists()
    lofi("average", *paths, "-o", out, "--strip-prefix", prefix, "--verify")
    check_mean(out, *plain)


@pytest.mark.quick
def test_two_prefixes(tmp_path):
    plain = [model(0), model(1)]
    runs = [with_prefix("module.", plain[0]), with_prefix("_orig_mod.", plain[1])]
    paths, out = files(tmp_path, *runs), tmp_path / "out.safetensors"
    told = refused(*paths, "-o", out)
    assert "--strip-prefix module. " in told and "--strip-prefix _orig_mod. " in told
    assert "DistributedDataParallel" in told and "torch.compile" in told
    options = ["--strip-prefix", "_orig_mod.", "--strip-prefix", "module."]
    lofi("average", *paths, "-o", out, *options)
    check_mean(out, *plain)
    # One input may have both, in whatever order; each is taken once.
    (path,) = files(tmp_path, with_prefix("module._orig_mod.module.", plain[0]))
    lofi("average", path, "-o", out, "-f", *options)
    check_mean(out, with_prefix("module.", plain[0]))


def test_a_part_of_the_model_is_no_prefix(tmp_path):
    """Only a prefix that all names of an input have is taken off."""
    plain = [model(0), model(1)]  # one of whose names is module.x
    paths = files(tmp_path, plain[0], with_prefix("module.", plain[1]))
    out = tmp_path / "out.safetensors"
    lofi("average", *paths, "-o", out, "--strip-prefix", "module.")
    check_mean(out, *plain)
    for prefix in ("modul.", "fc.", "module.fc.weight", ""):
        told = refused(*paths, "-o", out, "-f", f"--strip-prefix={prefix}")
        assert "--strip-prefix" in told and (prefix in told)


def test_of_the_base_and_with_only(tmp_path):
    plain = [model(i) for i in range(3)]
    paths = files(tmp_path, plain[0], plain[1], with_prefix("module.", plain[2]))
    out = tmp_path / "out.safetensors"
    options = ["--base", paths[2], "--alpha", "0.5", "-o", out]
    assert "--strip-prefix module. " in refused(*paths[:2], *options)
    lofi("average", *paths[:2], *options, "--strip-prefix", "module.", "--only", "^fc[.]weight$")
    found = read(out)
    mean = ck.mean([r["fc.weight"].data for r in plain[:2]], None, plain[2]["fc.weight"].data, 0.5)
    assert found["fc.weight"].same(Tensor.of("F32", mean))
    assert found["fc.bias"].same(plain[0]["fc.bias"])


def test_shards_have_the_new_names(tmp_path):
    plain = [model(0), model(1)]
    for i, run in enumerate(plain):
        named = list(with_prefix("module.", run).items())
        write_shards(tmp_path / str(i), [dict(named[:2]), dict(named[2:])], {"format": "pt"})
    out = tmp_path / "out"
    lofi("average", tmp_path / "0", tmp_path / "1", "-o", out, "--strip-prefix", "module.")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(NAMES)
    check_mean(out, *plain)
    assert lofi("info", out).returncode == 0


def test_diff_of_names_with_a_prefix(tmp_path):
    plain = [model(0), model(0), model(1)]
    runs = [plain[0], with_prefix("module.", plain[1]), plain[2]]
    paths = files(tmp_path, *runs)
    for arguments in (paths[:2], paths):
        done = lofi("diff", "--json", *arguments)
        (line,) = done.stderr.splitlines()
        assert "--strip-prefix module. " in line and str(paths[1]) in line
        done = lofi("diff", "--json", *arguments, "--strip-prefix", "module.")
        assert done.stderr == ""
    two = lofi("diff", "--json", *paths[:2], "--strip-prefix", "module.")
    assert json.loads(two.stdout)["equal_count"] == len(NAMES)
    assert lofi("diff", *paths[::2]).stderr == ""
    wrong = lofi("diff", *paths[:2], "--strip-prefix", "modul.", check=False)
    assert wrong.returncode == 1 and "'modul.'" in wrong.stderr


def test_other_differences_get_no_such_hint(tmp_path):
    paths = files(tmp_path, model(0, ["model.a", "model.b"]), model(1, ["model.a", "model.c"]))
    told = refused(*paths, "-o", tmp_path / "out.safetensors")
    assert "'model.b'" in told and "prefix" not in told


EMBEDDING, HEAD = "model.embed.weight", "lm_head.weight"


def tied(seed, kind="F32", has_head=True):
    run = model(seed, [EMBEDDING, "norm.weight"], kind)
    if has_head:
        run[HEAD] = run[EMBEDDING]
    return run


@pytest.mark.quick
@pytest.mark.parametrize("kinds", [("F32", "F32"), ("BF16", "F32")])
def test_tied_in_the_first_only(tmp_path, kinds):
    runs = [tied(0, kinds[0]), tied(1, kinds[1], has_head=False), tied(2)]
    out = tmp_path / "out.safetensors"
    paths = files(tmp_path, *runs)
    done = lofi("average", *paths, "-o", out, "--verify")
    (line,) = done.stderr.splitlines()
    assert HEAD in line and EMBEDDING in line and str(paths[1]) in line and "tied" in line
    runs[1][HEAD] = runs[1][EMBEDDING]
    check_mean(out, *runs)
    found = read(out)
    assert found[HEAD].same(found[EMBEDDING])


def test_tied_in_another_only(tmp_path):
    runs = [tied(0, has_head=False), tied(1)]
    paths, out = files(tmp_path, *runs), tmp_path / "out.safetensors"
    done = lofi("average", *paths, "-o", out)
    assert HEAD in done.stderr and str(paths[1]) in done.stderr
    assert HEAD not in header_of(out)
    check_mean(out, *runs)


def different(tensor):
    raw = tensor.raw.copy()
    raw.reshape(-1)[-1] += 1
    return Tensor(tensor.kind, raw)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("how", ["other", "shape", "dtype", "constant", "ambiguous", "absent"])
def test_not_tied(tmp_path, which, how):
    """A head of its own; a constant, of which there are many; equal to two that are not equal in
    the other; equal to one that the other lacks."""
    runs = [tied(0), tied(1)]
    owner, other = runs[which], runs[1 - which]
    del other[HEAD]
    same = owner[EMBEDDING]
    if how == "other":
        owner[HEAD] = different(same)
    elif how == "shape":
        owner[HEAD] = Tensor("F32", same.raw.reshape(7, 5))
    elif how == "dtype":
        owner[HEAD] = Tensor("I32", same.raw.view(np.int32))
    elif how == "constant":
        owner[HEAD] = owner[EMBEDDING] = Tensor.of("F32", np.zeros((5, 7)))
    elif how == "ambiguous":
        owner["norm.weight"] = same
    else:
        other["another"] = other.pop(EMBEDDING)
        owner["another"] = different(same)
    if how == "absent":
        owner.pop("norm.weight"), other.pop("norm.weight")
    paths, out = files(tmp_path, *runs), tmp_path / "out.safetensors"
    told = refused(*paths, "-o", out)
    assert f"of {paths[which]} is not in {paths[1 - which]}" in told and not out.exists()


def test_a_large_head_is_compared_whole(tmp_path):
    rng = np.random.default_rng(0)
    large = Tensor.of("F32", rng.standard_normal((300, 500)))
    first = {EMBEDDING: large, HEAD: large}
    paths, out = files(tmp_path, first, {EMBEDDING: large}), tmp_path / "out.safetensors"
    lofi("average", *paths, "-o", out)
    check_mean(out, first)
    first[HEAD] = different(large)
    files(tmp_path, first)
    assert HEAD in refused(*paths, "-o", out, "-f")
