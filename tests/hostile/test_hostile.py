# SPDX-License-Identifier: MIT
"""Each broken file gets one sentence that names it, the exit code 1, and no output."""

import os
import subprocess
from pathlib import Path

import corpus
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("LOFI_TEST_PROGRAM", str(ROOT / "build" / "gcc" / "lofi"))

pytestmark = pytest.mark.skipif(
    not Path(PROGRAM).exists(), reason="the program lofi is not built: bash ci/c.sh gcc"
)


def lofi(*arguments):
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, timeout=60, check=False
    )


def names_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def check_refused(done, sentence):
    text = done.stderr.decode()
    assert done.returncode == 1, (done.returncode, text)
    assert text.startswith("lofi: ") and text.endswith("\n") and text.count("\n") == 1
    assert all(c >= " " for c in text[:-1])
    assert sentence in text


@pytest.mark.parametrize("case", corpus.all_cases(), ids=lambda c: c.name)
def test_refused(case, tmp_path):
    path = corpus.write(case, tmp_path)
    good = tmp_path / "good.safetensors"
    before = names_in(tmp_path)
    check_refused(lofi("average", path, "-o", tmp_path / "out"), case.sentence)
    if case.name != "config_link":
        assert case.name in lofi("average", path, good, "-o", tmp_path / "out").stderr.decode()
        check_refused(lofi("average", good, path, "-o", tmp_path / "out"), case.sentence)
        check_refused(lofi("info", path), case.sentence)
        check_refused(lofi("diff", good, path), case.sentence)
    assert names_in(tmp_path) == before


def test_accepted(tmp_path):
    """What looks odd and is right."""
    entry, file_of = corpus.entry, corpus.file_of
    text = b'{"w":{"data_offsets":[0,24],"shape":[2,3],"dtype":"F32"}}'
    odd = {
        "padded": file_of(text + b" " * 1000),
        "metadata_of_null": file_of({"__metadata__": None, "w": entry()}),
        "zero_sized": file_of(
            {"a": entry("F32", (0,), 0, 0), "b": entry("F64", (4, 0), 0, 0)}, b""
        ),
        "zero_between": file_of(
            {"a": entry("U8", (12,), 0, 12), "z": entry("F32", (0, 2**40), 12, 12),
             "b": entry("U8", (12,), 12, 24)}
        ),
        "scalar": file_of({"s": entry("F64", (), 0, 8)}, b"\0" * 8),
        "empty_name": file_of({"": entry()}),
        "unicode": file_of({"größe/\U0001f600": entry()}),
        "packed": file_of({"x": entry("F4", (2, 24), 0, 24)}),
        "disordered": file_of({"b": entry("U8", (12,), 12, 24), "a": entry("U8", (12,), 0, 12)}),
        "unaligned": file_of(
            {"a": entry("U8", (1,), 0, 1), "b": entry("F32", (2,), 1, 9)}, b"a" * 9
        ),
    }  # fmt: skip
    for name, content in odd.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        out = tmp_path / f"{name}.out"
        done = lofi("average", path, path, "-o", out, "--verify")
        assert done.returncode == 0, done.stderr
        assert lofi("info", out).returncode == 0
        assert b" 0 differ" in lofi("diff", path, out).stdout, name


def test_no_tensors(tmp_path):
    """Such a file may be looked at. An average of none is no average."""
    for number, header in enumerate(({}, {"__metadata__": {"a": "b"}}, {"__metadata__": None})):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(corpus.file_of(header, b""))
        assert lofi("info", path).returncode == 0
        before = names_in(tmp_path)
        check_refused(lofi("average", path, path, "-o", tmp_path / "out"), "has no tensors")
        assert names_in(tmp_path) == before


def test_safetensors_agrees(tmp_path):
    """Nothing that lofi reads is refused by the library of the format."""
    safetensors = pytest.importorskip("safetensors")
    for case in corpus.all_cases():
        content = case.files.get("model.safetensors")
        if not isinstance(content, bytes) or case.target == "":
            continue
        path = tmp_path / f"{case.name}.safetensors"
        path.write_bytes(content)
        if lofi("info", path).returncode == 0:
            with safetensors.safe_open(path, "numpy"):
                pass


def test_pipe_is_not_waited_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_refused(lofi("average", pipe, "-o", tmp_path / "out"), "regular file")
    check_refused(lofi("average", "/dev/zero", "-o", tmp_path / "out"), "regular file")


def test_cache_of_hugging_face(tmp_path):
    """Its snapshots are links to blobs, which is fine; links elsewhere are not."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "abcd").write_bytes(corpus.GOOD)
    (blobs / "ef01").write_text("{}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abcd")
    (snapshot / "config.json").symlink_to("../../blobs/ef01")
    done = lofi("average", snapshot, snapshot, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert names_in(tmp_path / "out") == ["config.json", "model.safetensors"]
    (tmp_path / "secret").write_text("x")
    (snapshot / "vocab.json").symlink_to("../../../secret")
    (snapshot / "vocab.txt").symlink_to("/etc/passwd")
    done = lofi("average", snapshot, "-o", tmp_path / "new")
    assert done.returncode == 0 and done.stderr.count(b"outside of its folder") == 2
    assert names_in(tmp_path / "new") == ["config.json", "model.safetensors"]
