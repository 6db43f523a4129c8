# SPDX-License-Identifier: MIT
"""Folders whose weights fit and whose configs or tokenizers say that the models differ."""

import json
import subprocess
from pathlib import Path
from typing import Any

import lofi
import pytest
import torch
from harness.checkpoints import LOFI
from safetensors.torch import load_file, save_file

CONFIG: dict[str, Any] = {
    "_name_or_path": "first",
    "architectures": ["LlamaForCausalLM"],
    "rope_theta": 10000.0,
    "attention_dropout": 0.0,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "text_config": {"hidden_size": 4, "torch_dtype": "float32"},
}
TOKENIZER = {"padding": None, "model": {"vocab": {"a": 0, "b": 1}}}


def model(folder: Path, value: float, config: Any = CONFIG, **files: str) -> str:
    folder.mkdir()
    save_file({"w": torch.full((3,), value)}, folder / "model.safetensors")
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return str(folder)


def average(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([LOFI, "average", *words], capture_output=True, text=True, timeout=60)


DIFFERENT = {
    "rope_theta": ({"rope_theta": 500000.0}, "rope_theta (10000.0 and 500000.0)"),
    "nested": ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling.factor (2.0 and"),
    "part": ({"text_config": {"hidden_size": 8}}, "text_config.hidden_size (4 and 8)"),
    "missing": ({"rope_scaling": None}, "rope_scaling ("),
    "unknown": ({"secret": 1}, "secret (nothing and 1)"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_configs_that_differ_in_what_is_computed(name, tmp_path):
    change, told = DIFFERENT[name]
    paths = [model(tmp_path / "a", 1.0), model(tmp_path / "b", 3.0, CONFIG | change)]
    done = average(*paths, "-o", str(tmp_path / "out"))
    assert done.returncode == 1 and told in done.stderr and "--force-config" in done.stderr
    with pytest.raises(ValueError, match="force_config"):
        lofi.average_checkpoints(paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    assert average(*paths, "-o", str(tmp_path / "out"), "--force-config").returncode == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == CONFIG
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].tolist() == [2.0] * 3
    lofi.average_checkpoints(paths, tmp_path / "out", force=True, force_config=True)


def test_what_changes_nothing_is_no_difference(tmp_path):
    change = {
        "_name_or_path": "second",
        "transformers_version": "5.0",
        "attention_dropout": 0.1,
        "text_config": {"torch_dtype": "bfloat16", "hidden_size": 4},
    }
    paths = [model(tmp_path / "a", 1.0), model(tmp_path / "b", 3.0, CONFIG | change)]
    assert average(*paths, "-o", str(tmp_path / "out")).returncode == 0


def test_the_base_is_compared_too(tmp_path):
    paths = [model(tmp_path / "a", 1.0), model(tmp_path / "b", 3.0)]
    base = model(tmp_path / "c", 5.0, CONFIG | {"rope_theta": 1.0})
    words = ["--base", base, "--alpha", "0.5", "-o", str(tmp_path / "out")]
    assert average(*paths, *words).returncode == 1


@pytest.mark.parametrize(
    ("first", "second", "is_fine"),
    [
        ({"tokenizer__json": json.dumps(TOKENIZER)}, {}, True),
        (
            {"tokenizer__json": json.dumps(TOKENIZER)},
            {"tokenizer__json": json.dumps(TOKENIZER | {"padding": {"length": 3}}, indent=1)},
            True,
        ),
        (
            {"tokenizer__json": json.dumps(TOKENIZER)},
            {"tokenizer__json": json.dumps(TOKENIZER | {"model": {"vocab": {"b": 0, "a": 1}}})},
            False,
        ),
        ({"vocab__txt": "a\nb\n"}, {"vocab__txt": "b\na\n"}, False),
        ({"merges__txt": "a b\n"}, {"merges__txt": "a b\n"}, True),
    ],
)
def test_tokenizers(first, second, is_fine, tmp_path):
    paths = [model(tmp_path / "a", 1.0, **first), model(tmp_path / "b", 3.0, **second)]
    done = average(*paths, "-o", str(tmp_path / "out"))
    assert done.returncode == (0 if is_fine else 1), done.stderr
    if not is_fine:
        assert f"{tmp_path}/b/" in done.stderr and "differ" in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        json.dumps({f"k{i}": i for i in range(50_000)}),
    ],
)
def test_configs_of_strangers(text, tmp_path):
    paths = [model(tmp_path / "a", 1.0), model(tmp_path / "b", 3.0, text)]
    done = average(*paths, "-o", str(tmp_path / "out"))
    assert done.returncode == 1 and "differ" in done.stderr
    assert len(done.stderr) < 2000
    paths[0] = model(tmp_path / "c", 1.0, text)
    assert average(*paths, "-o", str(tmp_path / "out")).returncode == 0


def test_what_tells_of_one_run_alone_is_not_copied(tmp_path):
    story = {"README__md": "95 %", "trainer_state__json": "{}", "eval_results__json": "{}"}
    paths = [model(tmp_path / "a", 1.0, vocab__txt="a", **story), model(tmp_path / "b", 3.0)]
    done = average(*paths, "-o", str(tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert done.returncode == 0 and names == {"model.safetensors", "config.json", "vocab.txt"}
    assert all(name in done.stderr for name in ("README.md", "trainer_state.json"))
