# SPDX-License-Identifier: MIT
"""Weights that are coefficients (task arithmetic), against float64 in numpy, rounded once."""

import json
from pathlib import Path

import numpy as np
import pytest
from harness import checkpoints as ck
from harness.checkpoints import Tensor, lofi, read, write

pytestmark = pytest.mark.skipif(
    not Path(ck.LOFI).exists(), reason="the program lofi is not built: bash ci/c.sh gcc"
)


def runs_in(folder, kind, count=3, shape=(31, 7)):
    """Files, and their numbers as float64."""
    paths, data = [], []
    for seed in range(count):
        tensor = Tensor.of(kind, np.random.default_rng(seed).standard_normal(shape))
        paths.append(folder / f"run{seed}.safetensors")
        write(paths[-1], {"w": tensor})
        data.append(tensor.data)
    return paths, data


def weighted(data, weights):
    total = data[0] * weights[0]
    for x, w in zip(data[1:], weights[1:], strict=True):
        total = total + x * w
    return total


@pytest.mark.parametrize("kind", ck.FLOATS)
@pytest.mark.parametrize("weights", [[1, -0.5, 0.25], [2, -1, -1], [-1, 0.5, 0.3], [0, 1, -1]])
def test_without_a_base(tmp_path, kind, weights):
    paths, data = runs_in(tmp_path, kind)
    out = tmp_path / "out.safetensors"
    given = ",".join(map(str, weights))
    lofi("average", *paths, "-o", out, "--weights", given, "--no-normalize", "--verify")
    assert read(out)["w"].same(Tensor.of(kind, weighted(data, weights)))
    metadata = ck.header_of(out)["__metadata__"]
    assert metadata["lofi.raw_weights"] == "true"
    assert json.loads(metadata["lofi.weights"]) == weights


@pytest.mark.parametrize("kind", ["F32", "BF16"])
@pytest.mark.parametrize(("weights", "alpha"), [([1, 1], 0.4), ([1, -1], 0.3), ([0.7, -2], -1.0)])
def test_task_vectors(tmp_path, kind, weights, alpha):
    (base, *tuned), (origin, *data) = runs_in(tmp_path, kind)
    out = tmp_path / "out.safetensors"
    given = ",".join(map(str, weights))
    options = ["--base", base, "--alpha", alpha, "--weights", given, "--no-normalize"]
    lofi("average", *tuned, "-o", out, "--verify", *options)
    found = read(out)["w"]
    exact = origin * (1.0 - alpha * (weights[0] + weights[1])) + weighted(data, weights) * alpha
    assert found.same(Tensor.of(kind, exact))
    vectors = [w * (x - origin) for w, x in zip(weights, data, strict=True)]
    rounding = {"F32": 1e-6, "BF16": 1e-2}[kind]
    assert np.allclose(found.data, origin + alpha * sum(vectors), rtol=rounding, atol=rounding)


def test_a_task_vector_and_back(tmp_path):
    (base, tuned), (_, wanted) = runs_in(tmp_path, "F64", count=2)
    vector, back = tmp_path / "vector.safetensors", tmp_path / "back.safetensors"
    lofi("average", tuned, base, "-o", vector, "--weights", "1,-1", "--no-normalize")
    lofi("average", base, vector, "-o", back, "--weights", "1,1", "--no-normalize")
    assert np.allclose(read(back)["w"].data, wanted, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--weights", "1,-0.5,1"], "--no-normalize"),
        (["--weights", "0,0,0", "--no-normalize"], "are all 0"),
        (["--no-normalize"], "--no-normalize needs --weights"),
        (["--weights", "1,nan,1", "--no-normalize"], "weight 1 is nan"),
        (["--weights", "1,1e308,1e308", "--no-normalize"], "finite"),
    ],
)
def test_refused(tmp_path, options, told):
    paths, _ = runs_in(tmp_path, "F32")
    done = lofi("average", *paths, "-o", tmp_path / "out.safetensors", *options, check=False)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_from_python(tmp_path):
    torch = pytest.importorskip("torch")
    lofi_package = pytest.importorskip("lofi")
    data = [torch.randn(50, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    paths = [tmp_path / f"{i}.pt" for i in range(3)]
    for path, tensor in zip(paths, data, strict=True):
        torch.save({"w": tensor}, path)
    how = {"weights": [1, -0.5], "normalize": False}
    out = tmp_path / "out.pt"
    lofi_package.average_checkpoints(paths[:2], out, **how)
    assert torch.equal(torch.load(out)["w"], (data[0].double() - 0.5 * data[1].double()).float())
    lofi_package.average_checkpoints(paths[:2], out, base=paths[2], alpha=0.3, force=True, **how)
    sum_ = data[0].double() - 0.5 * data[1].double()
    exact = data[2].double() * (1 - 0.3 * 0.5) + 0.3 * sum_
    assert torch.equal(torch.load(out)["w"], exact.float())
    with pytest.raises(ValueError, match="normalize=False"):
        lofi_package.average_checkpoints(paths, tmp_path / "no.pt", normalize=False)
    with pytest.raises(ValueError, match="weight"):
        lofi_package.average_checkpoints(paths[:2], tmp_path / "no.pt", weights=[1, -0.5])
