# SPDX-License-Identifier: MIT
"""`lofi average` of folders as they are found: variants, adapters, caches, folders in folders."""

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from harness import checkpoints as ck
from harness.checkpoints import Tensor, lofi, read, write

pytestmark = pytest.mark.skipif(
    not Path(ck.LOFI).exists(), reason="the program lofi is not built: bash ci/c.sh gcc"
)


def tensors_of(seed: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {name: Tensor.of("F32", rng.standard_normal((8, 8))) for name in ("a", "b", "c")}


def write_run(folder: Path, seed: int, name: str = "model.safetensors") -> dict[str, Tensor]:
    folder.mkdir(parents=True)
    tensors = tensors_of(seed)
    write(folder / name, tensors)
    return tensors


def write_variant(folder: Path, seed: int, stem: str, index: str) -> dict[str, Tensor]:
    """Two shards and an index of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors, places = tensors_of(seed), {}
    for number, names in ((1, ("a", "b")), (2, ("c",))):
        name = f"{stem}-{number:05}-of-00002.safetensors"
        write(folder / name, {n: tensors[n] for n in names})
        places |= dict.fromkeys(names, name)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return tensors


def check(result: dict[str, Tensor], inputs: list[dict[str, Tensor]]) -> None:
    assert sorted(result) == sorted(inputs[0])
    for name, tensor in result.items():
        assert tensor.same(Tensor.of("F32", ck.mean([i[name].data for i in inputs]))), name


def read_index(folder: Path, index: str) -> dict[str, Tensor]:
    places = json.loads((folder / index).read_text())["weight_map"]
    result = {}
    for name in sorted(set(places.values())):
        result |= read(folder / name)
    return result


def names_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.quick
def test_variant(tmp_path):
    """model.fp16-00001-of-00002.safetensors with model.safetensors.index.fp16.json."""
    index = "model.safetensors.index.fp16.json"
    paths = [tmp_path / "run0", tmp_path / "run1"]
    inputs = [write_variant(p, i, "model.fp16", index) for i, p in enumerate(paths)]
    lofi("average", *paths, "-o", tmp_path / "out")
    check(read_index(tmp_path / "out", index), inputs)
    lofi("average", *(p / index for p in paths), "-o", tmp_path / "named")
    check(read_index(tmp_path / "named", index), inputs)
    lofi("average", *paths, "-o", tmp_path / "cut", "--shard-size", "300")
    check(read_index(tmp_path / "cut", index), inputs)
    assert "model.fp16-00003-of-00003.safetensors" in names_in(tmp_path / "cut")
    lofi("average", *paths, "-o", tmp_path / "one", "--shard-size", "1GB")
    assert names_in(tmp_path / "one") == ["model.fp16.safetensors"]


def test_two_variants(tmp_path):
    """The plain one counts; what belongs to the others is not copied."""
    paths = [tmp_path / "run0", tmp_path / "run1"]
    inputs = [write_run(p, i) for i, p in enumerate(paths)]
    for path in paths:
        write_variant(path, 9, "model.fp32", "model.safetensors.index.fp32.json")
        for name in ("flax_model.msgpack.index.json", "pytorch_model.bin.index.fp16.json"):
            (path / name).write_text("{}")
    lofi("average", *paths, "-o", tmp_path / "out")
    check(read(tmp_path / "out" / "model.safetensors"), inputs)
    assert names_in(tmp_path / "out") == ["model.safetensors"]
    for path in paths:
        (path / "model.safetensors").unlink()
        write_variant(path, 9, "model.fp16", "model.safetensors.index.fp16.json")
    done = lofi("average", *paths, "-o", tmp_path / "new", check=False)
    assert done.returncode == 1 and "several indexes: name the one" in done.stderr


@pytest.mark.parametrize("name", ["adapter_model", "diffusion_pytorch_model"])
def test_shards_keep_the_name(tmp_path, name):
    paths = [tmp_path / "run0", tmp_path / "run1"]
    inputs = [write_run(p, i, f"{name}.safetensors") for i, p in enumerate(paths)]
    lofi("average", *paths, "-o", tmp_path / "one", "--shard-size", "5GB")
    check(read(tmp_path / "one" / f"{name}.safetensors"), inputs)
    lofi("average", *paths, "-o", tmp_path / "cut", "--shard-size", "600")
    check(read_index(tmp_path / "cut", f"{name}.safetensors.index.json"), inputs)
    assert f"{name}-00001-of-00002.safetensors" in names_in(tmp_path / "cut")


def test_folder_of_a_cached_pipeline(tmp_path):
    """Its files are links to the blobs of the cache, from a folder in the snapshot."""
    blobs = tmp_path / "models--a" / "blobs"
    blobs.mkdir(parents=True)
    inputs, paths = [], []
    for seed in range(2):
        inputs.append(tensors_of(seed))
        write(blobs / str(seed), inputs[-1])
        paths.append(tmp_path / "models--a" / "snapshots" / str(seed) / "unet")
        paths[-1].mkdir(parents=True)
        (paths[-1] / "diffusion_pytorch_model.safetensors").symlink_to(f"../../../blobs/{seed}")
    lofi("average", *paths, "-o", tmp_path / "out")
    check(read(tmp_path / "out" / "diffusion_pytorch_model.safetensors"), inputs)
    other = tmp_path / "models--b" / "snapshots" / "0" / "unet"
    other.mkdir(parents=True)
    (other / "model.safetensors").symlink_to(blobs / "0")
    done = lofi("average", other, "-o", tmp_path / "new", check=False)
    assert done.returncode == 1 and "outside of its folder" in done.stderr


def test_folders_in_the_folder(tmp_path):
    """As sentence-transformers has them; with weights of their own they are named."""
    paths = [tmp_path / "run0", tmp_path / "run1"]
    inputs = [write_run(p, i) for i, p in enumerate(paths)]
    first = paths[0]
    for name, text in {
        "modules.json": "[]",
        "1_Pooling/config.json": '{"dtype": "float32"}',
        "1_Pooling/.hidden": "x",
        "2_Dense/config.json": "{}",
        "2_Dense/model.safetensors": "x",
        "deep/er/x": "x",
    }.items():
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).write_text(text)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "secret").write_text("x")
    (first / "outside").symlink_to(tmp_path / "small")
    (first / "1_Pooling" / "link").symlink_to("/etc/passwd")
    os.mkfifo(first / "pipe")
    out = tmp_path / "out"
    kept = ["1_Pooling/config.json", "model.safetensors", "modules.json"]
    for options in ([], ["--fsync"]):
        done = lofi("average", *paths, "-o", out, "--dtype", "bf16", *options)
        assert names_in(out) == kept and not (out / "outside").exists()
        assert (out / "1_Pooling" / "config.json").read_text() == '{"dtype": "float32"}'
        for name in ("2_Dense", "deep", "pipe", "1_Pooling/link", "outside"):
            assert f"{first}/{name}" in done.stderr, done.stderr
        assert "2_Dense: it is not copied: it has weights" in done.stderr
        shutil.rmtree(out)
    assert not list(tmp_path.glob(".lofi-*"))

    lofi("average", *paths, "-o", out)
    (out / "1_Pooling" / "config.json").write_text("old")
    (out / "1_Pooling" / "notes").write_text("mine")
    (out / "1_Pooling" / "my.safetensors").write_text("mine")
    (out / "sub").mkdir()
    (out / "sub" / "model.safetensors").write_text("mine")
    lofi("average", *paths, "-o", out, "--force")
    check(read(out / "model.safetensors"), inputs)
    assert (out / "1_Pooling" / "config.json").read_text() == '{"dtype": "float32"}'
    more = ["1_Pooling/my.safetensors", "1_Pooling/notes", "sub/model.safetensors"]
    assert names_in(out) == sorted([*kept, *more])
    assert not list(tmp_path.glob(".lofi-*"))


def test_no_room_leaves_no_folders(tmp_path):
    disk = tmp_path / "disk"
    write_run(tmp_path / "run0", 0)
    (tmp_path / "run0" / "1_Pooling").mkdir()
    (tmp_path / "run0" / "1_Pooling" / "config.json").write_bytes(bytes(2 << 20))
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk takes root")
    try:
        done = lofi("average", tmp_path / "run0", "-o", disk / "out", check=False)
        left = list(disk.iterdir())
        mounted = lofi("average", tmp_path / "run0", "-o", disk, check=False)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert done.returncode == 1 and "No space left" in done.stderr and left == []
    assert mounted.returncode == 1 and "name a folder in it" in mounted.stderr


@pytest.mark.skipif(not shutil.which("setpriv") or os.geteuid() != 0, reason="takes root")
def test_unreadable_file_beside_the_model(tmp_path):
    inputs = [write_run(tmp_path / "run0", 0)]
    (tmp_path / "run0" / "secret.json").write_text("{}")
    (tmp_path / "run0" / "secret.json").chmod(0)
    program = shutil.copy(ck.LOFI, tmp_path / "lofi")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o5 != 0o5 and folder.is_relative_to("/tmp"):
            folder.chmod(0o755)
    (tmp_path / "to").mkdir()
    (tmp_path / "to").chmod(0o777)
    nobody = ["setpriv", "--reuid", "65534", "--clear-groups", "--no-new-privs"]
    done = subprocess.run(
        [*nobody, program, "average", tmp_path / "run0", "-o", tmp_path / "to" / "out"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "secret.json" in done.stderr and "not copied" in done.stderr
    check(read(tmp_path / "to" / "out" / "model.safetensors"), inputs)


def test_config_keeps_all_but_the_dtype(tmp_path):
    """What Python's json writes and other readers refuse, and what a person has laid out."""
    write_run(tmp_path / "run0", 0)
    config = tmp_path / "run0" / "config.json"
    text = (
        '{ "dtype"  :\t"float32",\r\n "limit": [0.0, Infinity, NaN], '
        '"long": 123456789012345678901234567890, "x": "\\u00e9 \\"dtype\\": \\"float32\\"",'
        ' "vision_config": {"a": "\\\\", "torch_dtype":"flo\\u0061t32", "dtype": 3},'
        ' "list": [{"dtype": "float32"}], "torch_dtype": "float32"}\n'
    )
    config.write_bytes(text.encode())
    lofi("average", tmp_path / "run0", "-o", tmp_path / "out", "--dtype", "bf16")
    expected = (
        text.replace('"dtype"  :\t"float32"', '"dtype"  :\t"bfloat16"')
        .replace('"flo\\u0061t32"', '"bfloat16"')
        .replace('"torch_dtype": "float32"}', '"torch_dtype": "bfloat16"}')
    )
    assert (tmp_path / "out" / "config.json").read_bytes() == expected.encode()
    config.write_text("{broken")
    done = lofi("average", tmp_path / "run0", "-o", tmp_path / "new", "--dtype", "bf16")
    assert f"{config}: the JSON is not valid" in done.stderr
    assert (tmp_path / "new" / "config.json").read_text() == "{broken"
    config.write_text('{"a":' + "[" * 2_000_000 + "]" * 2_000_000 + "}")
    lofi("average", tmp_path / "run0", "-o", tmp_path / "deep", "--dtype", "bf16")
    assert (tmp_path / "deep" / "config.json").read_bytes() == config.read_bytes()


def test_numbers_of_the_index_are_kept(tmp_path):
    index = "model.safetensors.index.json"
    write_variant(tmp_path / "run0", 0, "model", index)
    path = tmp_path / "run0" / index
    long = 123456789012345678901234567890
    told = json.loads(path.read_text())
    told["metadata"] = {"total_size": 1, "total_parameters": long, "x": {"y": [1.5, "z"]}}
    path.write_text(json.dumps(told))
    lofi("average", tmp_path / "run0", "-o", tmp_path / "out")
    told["metadata"]["total_size"] = 3 * 8 * 8 * 4
    assert json.loads((tmp_path / "out" / index).read_text()) == told


def write_many(path: Path, tensors: int, pairs: int = 0) -> None:
    """A file of one-byte tensors under long names."""
    header: dict = {"__metadata__": {f"key{i}": "" for i in range(pairs)}}
    for i in range(tensors):
        name = f"model.layers.{i // 2000}.mlp.experts.{i % 2000}.down_proj.weight_scale_inv"
        header[name] = {"dtype": "U8", "shape": [1, 1], "data_offsets": [i, i + 1]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(tensors))


def test_memory_of_many_tensors(tmp_path):
    """As many as the largest mixtures of experts have, in one file."""
    write_many(tmp_path / "many", 100_000)
    paths = [tmp_path / "many"] * 3
    assert ck.peak_kilobytes("average", *paths, "-q", "-o", tmp_path / "out") < 128_000


def test_many_pairs_of_metadata(tmp_path):
    """An enemy's: in time that is quadratic they would take hours."""
    write_many(tmp_path / "many", 1, pairs=1_000_000)
    done = subprocess.run(
        [ck.LOFI, "average", tmp_path / "many", "-q", "-o", tmp_path / "out"], timeout=120
    )
    assert done.returncode == 0
    with open(tmp_path / "out", "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        metadata = json.loads(file.read(length))["__metadata__"]
    assert [key for key in metadata if not key.startswith("lofi.")] == [
        *(f"key{i}" for i in range(1_000_000)), "format"
    ]  # fmt: skip


def test_slash_behind_a_file(tmp_path):
    write(tmp_path / "a.safetensors", tensors_of(0))
    done = lofi("average", tmp_path / "a.safetensors", "-o", f"{tmp_path}/new/", check=False)
    assert done.returncode == 1 and "name of a folder" in done.stderr
    assert not (tmp_path / "new").exists()


def test_names_of_all_kinds(tmp_path):
    names = [
        'a"b',
        "c\\d\\",
        "tab\tnew\nline",
        "\x01\x1f\x7f",
        "\u00e9\u2028\U0001f600",
        "",
        "/",
        "{}",
    ]
    tensors = {n: Tensor.of("F32", np.full((2,), i)) for i, n in enumerate(names)}
    write(tmp_path / "a.safetensors", tensors, {'k"\n': "v\x02\\"})
    lofi("average", tmp_path / "a.safetensors", "-o", tmp_path / "out")
    check(read(tmp_path / "out"), [tensors])
    with open(tmp_path / "out", "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        assert json.loads(file.read(length))["__metadata__"]['k"\n'] == "v\x02\\"


@pytest.mark.parametrize(
    "files, index, stem, new_index",
    [
        ("model.safetensors-0000{}-of-00002.safetensors", "model.safetensors.index.json", "model",
         "model.safetensors.index.json"),
        ("llama-3.1-8b-0000{}-of-00002.safetensors", "llama-3.1-8b.safetensors.index.json",
         "llama-3.1-8b", "llama-3.1-8b.safetensors.index.json"),
        ("consolidated.0{}.safetensors", "model.safetensors.index.json", "model",
         "model.safetensors.index.json"),
        ("X-0000{}-of-00002.fp16.safetensors", "X.safetensors.fp16.index.json", "X.fp16",
         "X.safetensors.fp16.index.json"),
        ("model.fp16-0000{}-of-00002.safetensors", "model.safetensors.index.fp16.json",
         "model.fp16", "model.safetensors.index.fp16.json"),
        ("w{}.safetensors", "foo.index.json", "model", "model.safetensors.index.json"),
    ],
)  # fmt: skip
def test_shards_are_named_after_the_index(tmp_path, files, index, stem, new_index):
    inputs, paths = [], []
    for seed in range(2):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        inputs.append(tensors_of(seed))
        places = {"a": files.format(1), "b": files.format(1), "c": files.format(2)}
        for name in set(places.values()):
            write(folder / name, {t: inputs[-1][t] for t, at in places.items() if at == name})
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        paths.append(folder / index)
    out = tmp_path / "out"
    lofi("average", *paths, "-o", out)
    check(read_index(out, new_index), inputs)
    assert names_in(out) == sorted([files.format(1), files.format(2), new_index])
    lofi("average", *paths, "-o", out, "--force", "--shard-size", "600")
    check(read_index(out, new_index), inputs)
    shards = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert names_in(out) == sorted([*shards, new_index])
    lofi("average", *paths, "-o", out, "--force", "--shard-size", "1GB")
    check(read(out / f"{stem}.safetensors"), inputs)
    assert names_in(out) == [f"{stem}.safetensors"]


def test_points_in_a_name(tmp_path):
    """No variant: readers look for the whole name."""
    inputs = [write_run(tmp_path / "run", 0, "llama-3.1.safetensors")]
    lofi("average", tmp_path / "run", "-o", tmp_path / "out", "--shard-size", "600")
    check(read_index(tmp_path / "out", "llama-3.1.safetensors.index.json"), inputs)


def test_output_inside_an_input(tmp_path):
    inputs = [write_run(tmp_path / "run", 0)]
    out = tmp_path / "run" / "out"
    out.mkdir()
    lofi("average", tmp_path / "run", "-o", out)
    assert names_in(out) == ["model.safetensors"]
    (out / "notes").write_text("mine")
    lofi("average", tmp_path / "run", "-o", out, "--force")
    assert names_in(out) == ["model.safetensors", "notes"]
    check(read(out), inputs)


def test_diff_goes_on_where_shapes_differ(tmp_path):
    first, second = tensors_of(0), tensors_of(1)
    second["b"] = Tensor.of("F32", np.zeros((9, 8)))
    second["c"] = first["c"]
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, tensors in zip(paths, (first, second), strict=True):
        write(path, tensors)
    text = lofi("diff", *paths).stdout
    assert "'b' has the shape [8, 8] in" in text and "and [9, 8] in" in text
    assert "1 tensors are equal, 2 differ; all: max" in text
    told = json.loads(lofi("diff", "--json", *paths).stdout)
    assert {t["name"]: t["count"] for t in told["tensors"]} == {"a": 64, "b": 0}
    many = json.loads(lofi("diff", "--json", *paths, paths[0]).stdout)
    assert many["unmeasured_different_count"] == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_formats_are_told_by_name(tmp_path):
    write_run(tmp_path / "run", 0)
    done = lofi("average", tmp_path / "run", "-o", tmp_path / "x.safetensors", check=False)
    assert done.returncode == 1 and "the output will be a folder" in done.stderr
    (tmp_path / "run" / "optimizer.pt").write_text("x")
    done = lofi("average", tmp_path / "run", "-o", tmp_path / "out")
    assert "optimizer.pt: it is not copied: it belongs to other weights" in done.stderr
