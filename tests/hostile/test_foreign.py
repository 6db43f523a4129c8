# SPDX-License-Identifier: MIT
"""Files that people name in place of a checkpoint: a sentence says what each is, and what helps."""

import gzip
import io
import json
import tarfile
import zipfile

import corpus
import pytest
from test_hostile import check_refused, lofi, names_in, pytestmark  # noqa: F401

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
TFRECORD = b"\x01\x02\x03\x04\x05\x06\x07\x08binary"


def packed(make) -> bytes:
    target = io.BytesIO()
    make(target)
    return target.getvalue()


def tar(target):
    with tarfile.open(fileobj=target, mode="w") as archive:
        entry = tarfile.TarInfo("model.safetensors")
        entry.size = len(corpus.GOOD)
        archive.addfile(entry, io.BytesIO(corpus.GOOD))


def zipped(target):
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("data.pkl", b"x")


FILES = {
    "pointer": (POINTER, "git lfs pull"),
    "page": (PAGE, "web page"),
    "page_with_spaces": (b"\r\n  <HTML><body>502 Bad Gateway</body></HTML>", "web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "web page"),
    "line": (b"Entry not found", "'Entry not found'"),
    "line_with_end": (b"Invalid username or password.\n", "Invalid username"),
    "json": (b'{"error":"Repository not found"}', "Repository not found"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 99, "GGUF"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "Keras"),
    "numpy": (b"\x93NUMPY\x01\0v\0" + b"\0" * 99, "numpy"),
    "gzip": (gzip.compress(corpus.GOOD), "unpack it"),
    "zstandard": (b"\x28\xb5\x2f\xfd" + b"\1" * 99, "unpack it"),
    "tar": (packed(tar), "unpack it"),
    "torch": (packed(zipped), "lofi.average_checkpoints"),
    "zeros": (bytes(5000), "unfinished"),
    "empty": (b"", "too few"),
    "part": (corpus.GOOD[:-1], "cut short"),
}
NAMES = {
    "model.gguf": "llama.cpp",
    "tf_model.h5": "Keras",
    "flax_model.msgpack": "Flax",
    "model.onnx": "ONNX",
    "model.ckpt.data-00000-of-00001": "TensorFlow",
    "model.safetensors.incomplete": "unfinished download",
    "model.safetensors.part": "unfinished download",
}


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path, name):
    content, sentence = FILES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    good = tmp_path / "good.safetensors"
    good.write_bytes(corpus.GOOD)
    before = names_in(tmp_path)
    for arguments in (("average", good, path, "-o", tmp_path / "o"), ("diff", good, path)):
        check_refused(lofi(*arguments), sentence)
        assert str(path) in lofi(*arguments).stderr.decode()
    check_refused(lofi("info", tmp_path / "model.safetensors"), sentence)
    assert names_in(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
def test_names(tmp_path, name):
    (tmp_path / name).write_bytes(TFRECORD * 9)
    check_refused(lofi("info", tmp_path / name), NAMES[name])
    check_refused(lofi("average", tmp_path, "-o", tmp_path / "o"), NAMES[name])


def test_an_index_that_is_a_pointer(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_bytes(POINTER)
    check_refused(lofi("info", tmp_path), "git lfs pull")


def test_a_header_is_no_text(tmp_path):
    """Its length may begin with a byte that is a letter, or a bracket."""
    for length in [*range(60, 130), 0x7B7B, 0x227B, 0x3C68]:
        header = json.dumps({"w": corpus.entry()}).encode().ljust(length)
        path = tmp_path / "model.safetensors"
        path.write_bytes(corpus.framed(header))
        assert lofi("info", path).returncode == 0
        path.write_bytes(corpus.framed(header)[: length // 2])
        check_refused(lofi("info", path), "cut short")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"pytorch_model.bin": b"x"}, "lofi.average_checkpoints"),
        ({"a.pth": b"x"}, "lofi.average_checkpoints"),
        ({"pytorch_model.bin.index.json": b"{}", "pytorch_model-00001-of-00002.bin": b"x"},
         "save_pretrained()"),
        ({".metadata": b"x", "__0_0.distcp": b"x"}, "torch.distributed.checkpoint"),
        ({"tf_model.h5": b"x", "config.json": b"{}"}, "Keras"),
        ({"q4.gguf": b"x"}, "GGUF"),
        ({"checkpoint-20/model.safetensors": b"x", "checkpoint-10/model.safetensors": b"x"},
         "'checkpoint-10' there: it is a folder that has some"),
        ({"config.json": b"{}", "training_args.bin": b"x"}, "no safetensors file\n"),
        ({}, "no safetensors file\n"),
    ],
)  # fmt: skip
def test_folders(tmp_path, files, sentence):
    folder = tmp_path / "run"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    check_refused(lofi("average", folder, "-o", tmp_path / "out"), sentence)
    assert str(folder) in lofi("info", folder).stderr.decode()
