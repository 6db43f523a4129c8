# SPDX-License-Identifier: MIT
"""`lofi average` against float64 in numpy, rounded once: bit for bit."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from harness import checkpoints as ck
from harness import truth
from harness.checkpoints import Tensor, lofi, read, write, write_shards

pytestmark = pytest.mark.skipif(
    not Path(ck.LOFI).exists(), reason="the program lofi is not built: bash ci/c.sh gcc"
)

SHAPES = {"a.weight": (37, 53), "a.bias": (37,), "b": (1,), "scalar": (), "none": (0, 4)}


def random_data(rng, shape, wild=False):
    data = rng.standard_normal(shape)
    if wild:
        data = data * np.exp2(rng.integers(-160, 140, shape).astype(np.float64))
        flat = data.reshape(-1)
        if flat.size > 20:
            flat[:6] = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30]
    return data


def run_of(seed, kind, wild=False, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {n: Tensor.of(kind, random_data(rng, s, wild)) for n, s in shapes.items()}


def check(result, inputs, kind=None, weights=None, base=None, alpha=1.0):
    assert list(result) == list(inputs[0])
    for name, tensor in result.items():
        data = ck.mean(
            [i[name].data for i in inputs],
            weights,
            None if base is None else base[name].data,
            alpha,
        )
        assert tensor.same(Tensor.of(kind or inputs[0][name].kind, data)), name


@pytest.fixture
def runs(tmp_path):
    """Writes runs as files and returns their paths."""

    def make(inputs):
        paths = []
        for i, tensors in enumerate(inputs):
            paths.append(tmp_path / f"run{i}.safetensors")
            write(paths[-1], tensors, {"format": "pt"})
        return paths

    return make


@pytest.mark.parametrize("kind", ck.FLOATS)
@pytest.mark.parametrize("wild", [False, True])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 1.0], [0.1, 0.0, 0.7]])
def test_every_dtype(runs, tmp_path, kind, wild, weights):
    inputs = [run_of(i, kind, wild) for i in range(3)]
    options = [] if weights is None else ["--weights", ",".join(map(str, weights))]
    out = tmp_path / "out.safetensors"
    lofi("average", *runs(inputs), "-o", out, "--verify", *options, code=3 if wild else 0)
    check(read(out), inputs, weights=weights)


@pytest.mark.parametrize("kind", ck.FLOATS)
@pytest.mark.parametrize("alpha", [0.5, 0.3, 1.5, 0, 1])
def test_base(runs, tmp_path, kind, alpha):
    inputs = [run_of(i, kind) for i in range(3)]
    *paths, base = runs(inputs)
    out = tmp_path / "out.safetensors"
    lofi("average", *paths, "--base", base, "--alpha", alpha, "-o", out, "--verify")
    check(read(out), inputs[:2], base=inputs[2], alpha=alpha)


@pytest.mark.parametrize("to", ck.FLOATS)
@pytest.mark.parametrize("kind", ck.FLOATS)
def test_converted_with_one_rounding(runs, tmp_path, kind, to):
    inputs = [run_of(i, kind, wild=True) for i in range(2)]
    out = tmp_path / "out.safetensors"
    lofi("average", *runs(inputs), "-o", out, "--dtype", to, "--verify", code=3)
    check(read(out), inputs, kind=to)


@pytest.mark.quick
def test_mixed_dtypes(runs, tmp_path):
    inputs = [run_of(i, kind) for i, kind in enumerate(["BF16", "F32", "F8_E4M3", "F64"])]
    out = tmp_path / "out.safetensors"
    lofi("average", *runs(inputs), "-o", out)
    check(read(out), inputs)


def test_new_sizes_stay_aligned(runs, tmp_path):
    kinds = {"x": "F8_E5M2", "y": "F32", "z": "F8_E4M3"}
    inputs = [
        {n: Tensor.of(k, np.random.default_rng(i).standard_normal(3)) for n, k in kinds.items()}
        | {"int": Tensor("I64", np.arange(3))}
        for i in range(2)
    ]
    out = tmp_path / "out.safetensors"
    lofi("average", *runs(inputs), "-o", out, "--dtype", "fp32")
    header = ck.header_of(out)
    sizes = {"F32": 4, "I64": 8}
    assert list(header) == ["__metadata__", "int", "x", "y", "z"]
    for name in ("int", "x", "y", "z"):
        assert header[name]["data_offsets"][0] % sizes[header[name]["dtype"]] == 0


def test_torch_rounds_the_same(runs, tmp_path):
    torch = pytest.importorskip("torch")
    for kind, dtype in {
        "F16": torch.float16, "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    }.items():  # fmt: skip
        data = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
        data = data * np.exp2(np.random.default_rng(1).integers(-20, 9, 5000).astype(np.float32))
        (path,) = runs([{"x": Tensor("F32", data)}])
        out = tmp_path / f"{kind}.safetensors"
        # some are beyond 448
        lofi("average", path, "-o", out, "--dtype", kind, code=3 if kind == "F8_E4M3" else 0)
        ours = read(out)["x"].raw
        theirs = torch.from_numpy(data).to(dtype).view(torch.uint8).numpy()
        assert ours.tobytes() == theirs.tobytes(), kind


def test_complex(runs, tmp_path):
    rng = np.random.default_rng(0)
    inputs = [
        {"c": Tensor("C64", (rng.standard_normal(99) + 1j * rng.standard_normal(99)).astype("c8"))}
        for _ in range(3)
    ]
    out = tmp_path / "out.safetensors"
    lofi("average", *runs(inputs), "-o", out, "--dtype", "bf16")
    pairs = [i["c"].raw.view(np.float32).astype(np.float64) for i in inputs]
    assert read(out)["c"].raw.view(np.float32).tobytes() == ck.mean(pairs).astype("f4").tobytes()


INTEGERS = ["I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL"]


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers(runs, tmp_path, kind):
    inputs = [run_of(i, "F32") for i in range(3)]
    for i in inputs:
        i["steps"] = Tensor(kind, np.arange(70000).astype(ck.NUMPY[kind]))
    out = tmp_path / "out.safetensors"
    lofi("average", *runs(inputs), "-o", out)
    assert read(out)["steps"].same(inputs[0]["steps"])

    other = inputs[2]["steps"].raw.copy()
    other[69999] = not other[69999] if kind == "BOOL" else other[69999] + 1
    inputs[2]["steps"] = Tensor(kind, other)
    paths = runs(inputs)
    out.unlink()
    done = lofi("average", *paths, "-o", out, check=False)
    assert done.returncode == 1
    assert "'steps'" in done.stderr and "run0" in done.stderr and "run2" in done.stderr
    assert not out.exists()
    lofi("average", *paths, "-o", out, "--int", "first", "--verify")
    assert read(out)["steps"].same(inputs[0]["steps"])


def test_only_and_skip(runs, tmp_path):
    inputs = [run_of(i, "F32") for i in range(2)]
    del inputs[1]["b"]  # not selected, so it need not be there
    out = tmp_path / "out.safetensors"
    lofi("average", *runs(inputs), "-o", out, "--only", "^a[.]", "--skip", "bias$")
    result = read(out)
    expected = ck.mean([i["a.weight"].data for i in inputs])
    assert result["a.weight"].same(Tensor.of("F32", expected))
    for name in ("a.bias", "b", "scalar", "none"):
        assert result[name].same(inputs[0][name])


@pytest.mark.quick
def test_shards_cut_differently(tmp_path):
    inputs = [run_of(i, "BF16") for i in range(3)]
    names = list(SHAPES)
    cuts = [[names[:2], names[2:]], [names[3:], names[:1], names[1:3]]]
    for i, cut in enumerate(cuts):
        folder = tmp_path / f"run{i}"
        write_shards(folder, [{n: inputs[i][n] for n in part} for part in cut], {"format": "pt"})
    write(tmp_path / "run2.safetensors", inputs[2])
    (tmp_path / "run0" / "config.json").write_text("{}")
    (tmp_path / "run0" / "pytorch_model.bin").write_bytes(b"old")
    (tmp_path / "run0" / ".hidden").write_text("x")
    out = tmp_path / "out"
    paths = [tmp_path / "run0", tmp_path / "run1", tmp_path / "run2.safetensors"]
    lofi("average", *paths, "-o", out, "--verify")
    check(read(out), inputs)
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    old = json.loads((tmp_path / "run0" / "model.safetensors.index.json").read_text())
    new = json.loads((out / "model.safetensors.index.json").read_text())
    assert old == new
    # the index itself is as good as its folder
    index = tmp_path / "run0" / "model.safetensors.index.json"
    lofi("average", index, *paths[1:], "-o", tmp_path / "again")
    assert read(tmp_path / "again")["b"].same(read(out)["b"])


def test_shard_size(runs, tmp_path):
    inputs = [run_of(i, "F32") for i in range(2)]
    out = tmp_path / "out"
    lofi("average", *runs(inputs), "-o", out, "--shard-size", "7.9kB", "--verify")
    check(read(out), inputs)
    names = sorted(p.name for p in out.glob("*.safetensors"))
    assert names == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    lofi("average", *runs(inputs), "-o", tmp_path / "one", "--shard-size", "1TB")
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["model.safetensors"]
    check(read(tmp_path / "one"), inputs)


def test_metadata(runs, tmp_path):
    inputs = [run_of(i, "F32") for i in range(2)]
    paths = runs(inputs)
    write(paths[0], inputs[0], {"format": "pt", "lm_head.weight": "embed", "lofi.base": "old"})
    out = tmp_path / "out.safetensors"
    lofi("average", *paths, "-o", out, "--weights", "2,1", "--sha256")
    metadata = ck.header_of(out)["__metadata__"]
    assert metadata["format"] == "pt" and metadata["lm_head.weight"] == "embed"
    assert json.loads(metadata["lofi.inputs"]) == [str(p) for p in paths]
    assert json.loads(metadata["lofi.weights"]) == [2, 1]
    digests = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    assert json.loads(metadata["lofi.sha256"]) == digests
    assert "lofi.base" not in metadata
    odd = tmp_path / os.fsdecode(b"\xff.safetensors")
    shutil.copy(paths[0], odd)
    lofi("average", odd, "-o", out, "-f", "--sha256")
    safe = ck.header_of(out)["__metadata__"]
    assert json.loads(safe["lofi.inputs"])[0].endswith("?.safetensors")


def test_metadata_of_all_shards(tmp_path):
    tensors = run_of(0, "F32")
    folder = tmp_path / "run"
    write_shards(folder, [{n: t} for n, t in tensors.items()])
    last = sorted(folder.glob("*.safetensors"))[-1]
    write(last, {"none": tensors["none"]}, {"tied": "x"})
    lofi("average", folder, "-o", tmp_path / "one", "--shard-size", "1GB")
    metadata = ck.header_of(tmp_path / "one" / "model.safetensors")["__metadata__"]
    assert metadata["tied"] == "x" and metadata["format"] == "pt"
    lofi("average", folder, "-o", tmp_path / "same")
    for path in (tmp_path / "same").glob("*.safetensors"):
        metadata = ck.header_of(path)["__metadata__"]
        assert metadata["format"] == "pt" and ("tied" in metadata) == (path.name == last.name)


def test_threads_and_chunks_do_not_matter(runs, tmp_path):
    shapes = {"large": (1500, 2100), "small": (3,), "other": (1000, 1001)}
    inputs = [run_of(i, "BF16", shapes=shapes) for i in range(3)]
    paths = runs(inputs)
    contents = set()
    for threads in (1, 2, 4, 7):
        out = tmp_path / f"out{threads}.safetensors"
        lofi("average", *paths, "-o", out, "-j", threads, "-w", "0.3,0.2,0.7")
        contents.add(out.read_bytes())
    assert len(contents) == 1


def test_many_inputs(runs, tmp_path):
    inputs = [run_of(i, "F16", shapes={"x": (300, 70)}) for i in range(70)]
    lofi("average", *runs(inputs), "-o", tmp_path / "out.safetensors", "--verify")
    check(read(tmp_path / "out.safetensors"), inputs)


def test_opens_elsewhere(runs, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    inputs = [run_of(i, "F32") for i in range(2)]
    lofi("average", *runs(inputs), "-o", tmp_path / "out.safetensors")
    loaded = safetensors.load_file(tmp_path / "out.safetensors")
    ours = read(tmp_path / "out.safetensors")
    assert {n: t.raw.tobytes() for n, t in ours.items()} == {
        n: t.tobytes() for n, t in loaded.items()
    }


@pytest.mark.parametrize("shard_size", [None, "20KB"])
def test_transformers(tmp_path, shard_size):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48}
    config = transformers.LlamaConfig(
        **sizes, num_hidden_layers=2, num_attention_heads=2, tie_word_embeddings=True
    )
    models = []
    for i in range(2):
        torch.manual_seed(i)
        models.append(transformers.LlamaForCausalLM(config))
        size = {} if shard_size is None or i == 0 else {"max_shard_size": shard_size}
        models[i].save_pretrained(tmp_path / f"run{i}", **size)
    options = [] if shard_size is None else ["--shard-size", shard_size]
    lofi("average", tmp_path / "run0", tmp_path / "run1", "-o", tmp_path / "out", *options)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()
    with torch.no_grad():
        for a, b, mean in zip(*(m.parameters() for m in (*models, loaded)), strict=True):
            assert torch.equal(truth.mean([a, b]), mean)


def mount(disk):
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk takes root")


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    mount(disk)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


# ---- what is refused ----


def refused(tmp_path, *arguments, code=1):
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    done = lofi("average", *arguments, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("lofi: ") and done.stderr.count("\n") == 1, done.stderr
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before
    return done.stderr


def test_mismatches_are_named(runs, tmp_path):
    good, other = run_of(0, "F32"), run_of(1, "F32")
    out = tmp_path / "out.safetensors"

    missing = {n: t for n, t in other.items() if n != "b"}
    assert "'b' of" in refused(tmp_path, *runs([good, missing]), "-o", out)
    assert "'b' of" in refused(tmp_path, *runs([missing, good]), "-o", out)
    shape = other | {"b": Tensor.of("F32", np.zeros(2))}
    text = refused(tmp_path, *runs([good, shape]), "-o", out)
    assert "[1]" in text and "[2]" in text and "run0" in text and "run1" in text
    kind = other | {"b": Tensor("I32", np.zeros(1, np.int32))}
    assert "is F32 in" in refused(tmp_path, *runs([good, kind]), "-o", out)


def test_options_are_named(runs, tmp_path):
    paths = runs([run_of(i, "F32") for i in range(2)])
    out = ["-o", tmp_path / "out.safetensors"]
    assert "weights" in refused(tmp_path, *paths, *out, "-w", "1", code=2)
    assert "weights" in refused(tmp_path, *paths, *out, "-w", "1,2,3", code=2)
    assert "weight 1 is -2" in refused(tmp_path, *paths, *out, "-w", "1,-2", code=2)
    assert "weight 0 is inf" in refused(tmp_path, *paths, *out, "-w", "inf,1", code=2)
    assert "add up to 0" in refused(tmp_path, *paths, *out, "-w", "0,0", code=2)
    assert "regular expression" in refused(tmp_path, *paths, *out, "--only", "(", code=2)
    assert "float7" in refused(tmp_path, *paths, *out, "--dtype", "float7", code=2)
    for threads in ("0", "-1", "4294967297", "two", ""):
        assert "threads" in refused(tmp_path, *paths, *out, "-j", threads, code=2)
    assert "--base" in refused(tmp_path, *paths, *out, "--alpha", "1", code=2)
    assert "--alpha" in refused(tmp_path, *paths, *out, "--base", paths[0], code=2)
    base = ["--base", paths[0], "--alpha", "nan"]
    assert "finite" in refused(tmp_path, *paths, *out, *base, code=2)
    for selection in (["--only", "lm_head"], ["--skip", "."], ["--only", "a", "--skip", "^[abns]"]):
        told = refused(tmp_path, *paths, *out, *selection)
        assert "none of its tensors is selected" in told and selection[-1] in told
    assert "-o OUT" in refused(tmp_path, *paths, code=2)
    assert "no checkpoint" in refused(tmp_path, *out, code=2)
    assert "shard-size" in refused(tmp_path, *paths, *out, "--shard-size", "5 apples", code=2)
    assert "can't be found" in refused(tmp_path, *paths, "-o", tmp_path / "no" / "out")
    assert "No such file" in refused(tmp_path, *paths, tmp_path / "no", *out)


def test_outputs_that_are_there(runs, tmp_path):
    inputs = [run_of(i, "F32") for i in range(2)]
    paths = runs(inputs)
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    assert "--force" in refused(tmp_path, *paths, "-o", out)
    for path in paths:
        assert "replace an input" in refused(tmp_path, *paths, "-o", path, "-f")
    link = tmp_path / "link.safetensors"
    link.symlink_to(paths[1])
    assert "replace an input" in refused(tmp_path, *paths, "-o", link, "-f")
    assert "replace an input" in refused(
        tmp_path, *paths, "-o", tmp_path, "-f", "--shard-size", "1GB"
    )
    lofi("average", *paths, "-o", out, "-f")
    check(read(out), inputs)


def test_mode_is_kept(runs, tmp_path):
    paths = runs([run_of(i, "F32") for i in range(2)])
    out, folder = tmp_path / "out.safetensors", tmp_path / "folder"
    out.write_text("old")
    folder.mkdir()
    for file_mode, folder_mode in ((0o600, 0o700), (0o664, 0o2775)):
        out.chmod(file_mode)
        folder.chmod(folder_mode)
        lofi("average", *paths, "-o", out, "-f")
        lofi("average", *paths, "-o", folder, "-f", "--shard-size", "1GB")
        assert out.stat().st_mode & 0o7777 == file_mode
        assert folder.stat().st_mode & 0o7777 == folder_mode


def test_only_files_and_folders_are_replaced(runs, tmp_path):
    paths = runs([run_of(i, "F32") for i in range(2)])
    out = tmp_path / "out.safetensors"
    os.mkfifo(out)
    assert "neither a file" in refused(tmp_path, *paths, "-o", out, "-f")
    out.unlink()
    out.symlink_to(tmp_path / "nowhere")
    assert "a link to what is not there" in refused(tmp_path, *paths, "-o", out, "-f")
    assert out.is_symlink()


def test_limit_of_file_sizes(runs, tmp_path):
    paths = runs([run_of(i, "F32") for i in range(2)])
    out = tmp_path / "out.safetensors"
    command = 'ulimit -f 1; exec "$0" "$@"'
    done = subprocess.run(
        ["bash", "-c", command, ck.LOFI, "average", *paths, "-o", out],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and str(out) in done.stderr
    assert not out.exists() and not list(tmp_path.glob(".lofi-*"))


def test_input_is_a_link_into_the_output(runs, tmp_path):
    inputs = [run_of(i, "F32") for i in range(2)]
    _, other = runs(inputs)
    out = tmp_path / "out"
    out.mkdir()
    write(out / "model.safetensors", inputs[0])
    link = tmp_path / "link.safetensors"
    link.symlink_to(out / "model.safetensors")
    arguments = [link, other, "-o", out, "--shard-size", "1GB", "-f"]
    assert "replace an input" in refused(tmp_path, *arguments)
    assert read(link)["b"].same(inputs[0]["b"])


def test_folder_is_replaced_as_a_whole(tmp_path):
    inputs = [run_of(i, "F32") for i in range(2)]
    for i, tensors in enumerate(inputs):
        write_shards(tmp_path / f"run{i}", [tensors])
    (tmp_path / "run0" / "config.json").write_text("new")
    out = tmp_path / "out"
    out.mkdir()
    paths = [tmp_path / "run0", tmp_path / "run1"]
    lofi("average", *paths, "-o", out)  # an empty folder is nothing to lose
    check(read(out), inputs)
    (out / "config.json").write_text("old")
    (out / "model-00007-of-00009.safetensors").write_text("stale")
    (out / "notes.txt").write_text("mine")
    (out / "logs").mkdir()
    (out / "logs" / "a").write_text("kept")
    assert "--force" in refused(tmp_path, *paths, "-o", out)
    lofi("average", *paths, "-o", out, "-f", "--fsync")
    check(read(out), inputs)
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*")) == [
        "config.json", "logs", "logs/a", "model-00001-of-00001.safetensors",
        "model.safetensors.index.json", "notes.txt",
    ]  # fmt: skip
    assert (out / "config.json").read_text() == "new"
    assert not list(tmp_path.glob(".lofi-*"))


def test_what_can_not_be_moved_is_not_lost(runs, tmp_path):
    inputs = [run_of(i, "F32") for i in range(2)]
    paths = runs(inputs)
    out = tmp_path / "out"
    out.mkdir()
    mount(out / "disk")
    (out / "disk" / "data").write_text("mine")
    done = lofi("average", *paths, "-o", out, "-f", "--shard-size", "1GB", check=False)
    (hidden,) = tmp_path.glob(".lofi-*")
    kept = (hidden / "disk" / "data").read_text()
    subprocess.run(["umount", hidden / "disk"], check=True)
    assert done.returncode == 1 and kept == "mine"
    assert "the average is complete" in done.stderr and hidden.name in done.stderr
    check(read(out), inputs)


def test_links_beside_the_model(tmp_path):
    """A launcher's folder has links to logs and to what is gone: no reason to fail."""
    inputs = [run_of(i, "F32") for i in range(2)]
    for i, tensors in enumerate(inputs):
        write_shards(tmp_path / f"run{i}", [tensors])
    (tmp_path / "secret").write_text("outside")
    first = tmp_path / "run0"
    (first / "config.json").write_text("{}")
    (first / "latest").symlink_to("config.json")
    (first / "gone").symlink_to("nowhere")
    (first / "log").symlink_to(tmp_path / "secret")
    (first / "loop").symlink_to("loop")
    with open(first / "vocab.txt", "wb") as file:
        file.truncate((64 << 20) + 1)
    out = tmp_path / "out"
    done = lofi("average", first, tmp_path / "run1", "-o", out)
    check(read(out), inputs)
    names = {p.name for p in out.iterdir()}
    assert {"config.json", "latest"} <= names and not {"gone", "log", "loop", "vocab.txt"} & names
    for name in ("gone", "log", "loop", "vocab.txt"):
        assert f"{first}/{name}" in done.stderr, done.stderr


@pytest.mark.parametrize("options", [[], ["--shard-size", "1GB"], ["--shard-size", "7.9kB"]])
def test_index_of_any_name(tmp_path, options):
    inputs = [run_of(i, "F32") for i in range(2)]
    indices = []
    for i, tensors in enumerate(inputs):
        names = list(tensors)
        folder = tmp_path / f"run{i}"
        write_shards(folder, [{n: tensors[n] for n in part} for part in (names[:2], names[2:])])
        indices.append(folder / "my.index.json")
        (folder / "model.safetensors.index.json").rename(indices[-1])
        (folder / "config.json").write_text("{}")
    out = tmp_path / "out"
    lofi("average", *indices, "-o", out, *options)
    assert (out / "model.safetensors.index.json").exists() == (options[-1:] != ["1GB"])
    assert not (out / "my.index.json").exists() and (out / "config.json").exists()
    check(read(out), inputs)


def test_config_names_the_dtype(tmp_path):
    inputs = [run_of(i, "BF16") for i in range(2)]
    config = {
        "torch_dtype": "bfloat16", "eps": 1e-05, "name": "b\u00e9",
        "text_config": {"dtype": "bfloat16"},
        "quantization_config": {"dtype": "uint8"}, "dtype": None, "layers": [1, 2],
    }  # fmt: skip
    for i, tensors in enumerate(inputs):
        write_shards(tmp_path / f"run{i}", [tensors])
    text = json.dumps(config)
    (tmp_path / "run0" / "config.json").write_text(text)
    paths = [tmp_path / "run0", tmp_path / "run1"]
    lofi("average", *paths, "-o", tmp_path / "same")
    assert (tmp_path / "same" / "config.json").read_text() == text
    lofi("average", *paths, "-o", tmp_path / "wide", "--dtype", "fp32")
    told = json.loads((tmp_path / "wide" / "config.json").read_text())
    config["torch_dtype"] = config["text_config"]["dtype"] = "float32"
    assert told == config
    (tmp_path / "run0" / "config.json").write_text("no JSON")
    lofi("average", *paths, "-o", tmp_path / "odd", "--dtype", "fp32")
    assert (tmp_path / "odd" / "config.json").read_text() == "no JSON"


# ---- what goes wrong meanwhile ----


@pytest.fixture
def large(tmp_path):
    paths = []
    for i in range(2):
        data = np.random.default_rng(i).integers(0, 0x3F80, 100_000_000, dtype=np.uint16)
        paths.append(tmp_path / f"large{i}.safetensors")
        write(paths[-1], {"x": Tensor("BF16", data)})
    return paths


@pytest.mark.parametrize("option", ["--verify", "--sha256"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed(large, tmp_path, number, option):
    out = tmp_path / "out.safetensors"
    out.write_text("old")
    killed = 0
    for delay in (0.01, 0.02, 0.05, 0.1):
        process = subprocess.Popen(
            [ck.LOFI, "average", *large, "-o", out, "-f", "-j", "1", option],
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            # A shell that starts these tests in the background has SIGINT ignored.
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL) if number != 9 else None,
        )  # fmt: skip
        time.sleep(delay)
        process.send_signal(number)
        if process.wait() == 0:
            break
        assert process.returncode == -number
        assert out.read_text() == "old"
        killed += 1
        if number != signal.SIGKILL:
            assert not list(tmp_path.glob(".lofi-*"))
    assert killed > 0


def test_second_signal_ends_at_once(large, tmp_path):
    process = subprocess.Popen(
        [ck.LOFI, "average", *large, "-o", tmp_path / "out.safetensors", "-j", "1"],
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not list(tmp_path.glob(".lofi-*")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        process.send_signal(number)
    assert process.wait() in (-signal.SIGINT, -signal.SIGTERM)
    assert list(tmp_path.glob(".lofi-*"))  # nothing was tidied up


def start_and_stop(inputs, out):
    """Starts an average, and stops it before it has given the output its name."""
    process = subprocess.Popen(
        [ck.LOFI, "average", *inputs, "-o", out, "-f", "-j", "1"], stdout=subprocess.DEVNULL
    )
    while not list(out.parent.glob(f".lofi-{process.pid}-*")):
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    return process


@pytest.mark.parametrize("form", ["file", "folder"])
def test_two_at_once(large, tmp_path, form):
    """Two that make the same new output with --force are both done, and the last one stays."""
    out = tmp_path / ("out.safetensors" if form == "file" else "out")
    small = tmp_path / "small.safetensors"
    write(small, {"x": Tensor.of("F32", [1.0])})
    if form == "folder":
        for i, path in enumerate(large):
            (tmp_path / f"run{i}").mkdir()
            large[i] = path.rename(tmp_path / f"run{i}" / "model.safetensors").parent
        (tmp_path / "small").mkdir()
        small = small.rename(tmp_path / "small" / "model.safetensors").parent
        (small / "notes.txt").write_text("x")
    process = start_and_stop(large, out)
    assert not out.exists()
    lofi("average", small, "-o", out, "-f")
    assert read(out)["x"].raw.shape == (1,)
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
    assert read(out)["x"].raw.shape == (100_000_000,)
    assert not list(tmp_path.glob(".lofi-*"))
    if form == "folder":
        assert sorted(p.name for p in out.iterdir()) == ["model.safetensors", "notes.txt"]


def test_many_replace_one_folder(tmp_path):
    """Each ends well, and no file of the folder that is no checkpoint is lost."""
    for i in range(2):
        write_shards(tmp_path / f"run{i}", [run_of(i, "F32"), {"more": Tensor.of("F32", [1.0])}])
    out = tmp_path / "out"
    for _ in range(5):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        others = [f"other{number}" for number in range(40)]
        for name in others:
            (out / name).write_text(name)
        command = [ck.LOFI, "average", tmp_path / "run0", tmp_path / "run1", "-o", out, "-f", "-q"]
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(6)]
        told = [process.communicate()[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * 6, told
        assert {path.name for path in out.iterdir()} >= set(others)
        check(read(out), [read(tmp_path / f"run{i}") for i in range(2)])
        assert not list(tmp_path.glob(".lofi-*"))


@pytest.mark.parametrize("closed", ["0<&- 1>&- 2>&-", "0<&- 2>&-", "2>&-"])
@pytest.mark.parametrize("option", ["-q", "-f"])
def test_closed_standard_files(tmp_path, closed, option):
    for i in range(2):
        write_shards(tmp_path / f"run{i}", [run_of(i, "F32")])
    (tmp_path / "run0" / "vocab.json").symlink_to("nowhere")  # told on stderr
    runs = [tmp_path / "run0", tmp_path / "run1"]
    lofi("average", *runs, "-o", tmp_path / "right")
    subprocess.run(
        ["bash", "-c", f'exec {closed}; exec "$@"', "bash", ck.LOFI, "average", *runs,
         "-o", tmp_path / "out", option],
        stdout=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    for path in (tmp_path / "right").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    done = subprocess.run(["bash", "-c", 'exec "$0" info "$1" >&-', ck.LOFI, runs[0]], check=False)
    assert done.returncode == 1  # what is printed nowhere is an error still


def test_warnings_are_text_and_quiet(tmp_path):
    write_shards(tmp_path / "run", [run_of(0, "F32")])
    (tmp_path / "run" / "a\x1b]0;b\a\x85.json").symlink_to("nowhere")
    told = lofi("average", tmp_path / "run", "-o", tmp_path / "out").stderr
    assert "a?]0;b???.json: it is not copied" in told and told.count("\n") == 1
    assert lofi("average", tmp_path / "run", "-o", tmp_path / "out", "-f", "-q").stderr == ""


def test_full_disk(runs, tmp_path, small_disk):
    inputs = [run_of(i, "F32", shapes={"x": (1000, 600)}) for i in range(2)]
    paths = runs(inputs)
    out = small_disk / "out.safetensors"
    out.write_text("old")
    text = refused(tmp_path, *paths, "-o", out, "-f")
    assert "No space left" in text and out.read_text() == "old"
    assert [p.name for p in small_disk.iterdir()] == ["out.safetensors"]
    text = refused(tmp_path, *paths, "-o", small_disk / "folder", "--shard-size", "1MB")
    assert "No space left" in text
    assert [p.name for p in small_disk.iterdir()] == ["out.safetensors"]


def test_memory_is_bounded(large, tmp_path):
    """The peak does not know how large the files are."""
    assert ck.peak_kilobytes("average", *large, "-q", "-o", tmp_path / "out") < 128_000


# ---- info and diff ----


@pytest.mark.quick
def test_info(runs, tmp_path):
    inputs = [run_of(i, "BF16") for i in range(2)]
    paths = runs(inputs)
    told = json.loads(lofi("info", "--json", paths[0]).stdout)
    assert [t["name"] for t in told["tensors"]] == list(SHAPES)
    assert told["tensors"][0]["shape"] == [37, 53] and told["metadata"] == [["format", "pt"]]
    text = lofi("info", paths[0]).stdout
    assert "a.weight [37, 53]" in text and "5 tensors" in text
    assert "a.weight" not in lofi("info", "--short", paths[0]).stdout


def test_json_of_any_name(runs, tmp_path):
    """Each byte that is no UTF-8 is U+FFFD: too long, cut off, a surrogate, beyond the last."""
    (path,) = runs([run_of(0, "F32")])
    for name, text in (
        (b"\xff", "\ufffd"),
        (b"\xc3(\x80", "\ufffd(\ufffd"),
        (b"\xc0\xaf", "\ufffd" * 2),
        (b"\xe0\x80\xaf\xe2\x82", "\ufffd" * 5),
        (b"\xed\xa0\x80", "\ufffd" * 3),
        (b"\xf4\x90\x80\x80\xf5", "\ufffd" * 5),
        ("\xe9\u20ac\ud7ff\U0001f600\U0010ffff\\\"\n".encode(),
         "\xe9\u20ac\ud7ff\U0001f600\U0010ffff\\\"\n"),
    ):  # fmt: skip
        link = os.path.join(os.fsencode(tmp_path), b"x" + name + b".safetensors")
        os.symlink(path, link)
        for command in (["info"], ["diff", path, path]):
            done = subprocess.run(
                [ck.LOFI, *command, "--json", link], capture_output=True, check=True
            )
            told = json.loads(done.stdout.decode())
            shown = told["path"] if command == ["info"] else told["checkpoints"][2]
            assert shown == f"{tmp_path}/x{text}.safetensors"


def test_info_tells_what_shards_repeat_once(tmp_path):
    tensors = run_of(0, "F32")
    many = {"format": "pt"} | {f"key {i}": "value" for i in range(60_000, 0, -1)}
    write_shards(tmp_path / "run", [{n: t} for n, t in tensors.items()], many)
    last = sorted((tmp_path / "run").glob("*.safetensors"))[-1]
    write(last, {"none": tensors["none"]}, {"format": "np", "key 1": "value"})
    expected = [*many.items(), ("format", "np")]
    told = json.loads(lofi("info", "--short", "--json", tmp_path / "run").stdout)
    assert told["metadata"] == [list(pair) for pair in expected]
    _, *lines = lofi("info", "--short", tmp_path / "run").stdout.splitlines()
    assert lines == [f"  {key}: {value}" for key, value in expected]


@pytest.mark.quick
def test_diff(runs):
    inputs = [run_of(i, "F32") for i in range(3)]
    inputs[1]["b"] = inputs[0]["b"]
    paths = runs(inputs)
    told = json.loads(lofi("diff", "--json", "-a", *paths[:2]).stdout)
    x, y = (i["a.weight"].data for i in inputs[:2])
    one = next(t for t in told["tensors"] if t["name"] == "a.weight")
    assert one["max"] == np.abs(x - y).max()
    assert one["rms"] == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), rel=1e-12)
    cosine = (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())
    assert one["cosine"] == pytest.approx(cosine, rel=1e-12)
    assert told["equal_count"] == 2 and told["different_count"] == 3
    assert "0 differ" in lofi("diff", paths[0], paths[0]).stdout
    many = json.loads(lofi("diff", "--json", *paths).stdout)
    flat = [np.concatenate([t.data.reshape(-1) for t in i.values()]) for i in inputs]
    distance = [[np.linalg.norm(a - b) for b in flat] for a in flat]
    assert np.allclose(many["distance"], distance)
    assert many["missing_count"] == [[0] * 3] * 3
    assert "cosine" in lofi("diff", *paths).stdout
    assert "in one only" not in lofi("diff", *paths).stdout


def test_diff_of_what_is_not_finite(runs):
    def run(*numbers):
        return {"x": Tensor("F32", np.array(numbers, np.float32))}

    paths = runs([run(np.inf, np.nan, 3, 4), run(np.inf, np.nan, 3, 2), run(9, np.nan, np.nan, 4)])
    told = json.loads(lofi("diff", "--json", *paths[:2]).stdout)["all"]
    assert told["max"] == told["distance"] == 2 and told["rms"] == 1
    assert told["cosine"] == pytest.approx(17 / np.sqrt(25 * 13))
    told = json.loads(lofi("diff", "--json", "-a", paths[0], paths[0]).stdout)["all"]
    assert told["max"] == 0 and told["distance"] == 0 and told["cosine"] == 1
    told = json.loads(lofi("diff", "--json", paths[1], paths[2]).stdout)["all"]
    assert told["max"] is None and not told["equal"]  # NaN, whatever comes after it


def test_diff_shows_no_sign_of_a_nan(runs):
    """The sign of a NaN depends on the CPU, and on how it came about."""
    bits = np.array([0xFFC00000, 0x7FC00000, 0], dtype=np.uint32).view(np.float32)
    one, other = Tensor("F32", np.zeros(3, np.float32)), Tensor("F32", bits)
    infinite = Tensor.of("F32", [np.inf, -np.inf, 1.0])
    paths = runs([{"x": one}, {"x": other}, {"x": infinite}])
    for pair in ((0, 1), (1, 0), (0, 2), (1, 2), (0, 1, 2)):
        shown = lofi("diff", *[paths[i] for i in pair]).stdout
        assert "nan" in shown and "-nan" not in shown, shown


def test_diff_of_what_does_not_fit(runs):
    inputs = [run_of(i, "F32") for i in range(3)]
    del inputs[2]["b"]
    paths = runs(inputs)
    many = json.loads(lofi("diff", "--json", *paths).stdout)
    assert many["missing_count"] == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert "in one only" in lofi("diff", *paths).stdout
    assert many["unmeasured_different_count"] == [[0] * 3] * 3


def test_diff_of_what_has_no_distance(runs):
    """That integers differ, or that there is nothing to compare, is no distance of 0."""

    def run(name, number, more=()):
        return {name: Tensor("I64", np.array([number]))} | dict(more)

    floats = {"x": Tensor.of("F32", np.ones(4))}
    paths = runs([run("n", 1, floats), run("n", 2, floats), run("n", 2), run("other", 1)])
    many = json.loads(lofi("diff", "--json", *paths).stdout)
    assert many["unmeasured_different_count"] == [
        [0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]
    ]  # fmt: skip
    none = [None] * 4
    assert many["distance"] == [[0, 0, *none[:2]], [0, 0, *none[:2]], [*none[:2], 0, None],
                                [*none[:3], 0]]  # fmt: skip
    assert [row[i] for i, row in enumerate(many["cosine"])] == [1] * 4
    assert many["cosine"][0][1] == 1 and many["cosine"][2] == [None, None, 1, None]
    text = lofi("diff", *paths).stdout
    assert "not in the distance" in text and "in one only" in text
    assert text.splitlines()[7].split() == ["3", "-", "-", "0", "-"]
    told = json.loads(lofi("diff", "--json", paths[1], paths[2]).stdout)["all"]
    assert told["equal"] and told["distance"] is None and told["cosine"] is None


def test_help():
    for command in ([], ["average"], ["info"], ["diff"]):
        text = lofi(*command, "--help").stdout
        assert text.startswith("usage: lofi") and max(map(len, text.splitlines())) <= 100
    assert lofi("--version").stdout.startswith("lofi 0.1.0")
    assert lofi("merge", check=False).returncode == 2
    assert lofi("average", "--no-such", check=False).returncode == 2
