# SPDX-License-Identifier: MIT
"""Quantised checkpoints: codes and scales must not be averaged apart, by program or from Python."""

import json
import subprocess
from pathlib import Path

import lofi
import pytest
import torch
from harness.checkpoints import LOFI
from safetensors.torch import save_file

F8, U8, I8, I32 = torch.float8_e4m3fn, torch.uint8, torch.int8, torch.int32

LAYOUTS = {
    "scaled fp8": {"l.weight": F8, "l.weight_scale": None},
    "scaled fp8 of blocks": {"l.weight": F8, "l.weight_scale_inv": None},
    "static fp8": {"l.weight": F8, "l.weight_scale": None, "l.input_scale": None},
    "comfy": {"l.weight": F8, "l.scale_weight": None},
    "w8a8": {"l.weight": I8, "l.weight_scale": None},
    "nvfp4": {"l.weight": U8, "l.weight_scale": F8, "l.weight_scale_2": None},
    "gptq": {"l.qweight": I32, "l.qzeros": I32, "l.scales": None, "l.g_idx": I32},
    "awq": {"l.qweight": I32, "l.qzeros": I32, "l.scales": None},
    "bnb 8": {"l.weight": I8, "l.SCB": None},
    "bnb 4": {"l.weight": U8, "l.weight.absmax": None, "l.weight.quant_map": None},
    "compressed": {"l.weight_packed": I32, "l.weight_scale": None},
    "hqq": {"l.W_q": U8, "l.scale": None, "l.zero": None},
    "mxfp4": {"m.gate_up_proj_blocks": U8, "m.gate_up_proj_scales": U8},
    "quanto": {"l.weight._data": I8, "l.weight._scale": None},
    "torchao": {"l._weight_qdata": I8, "l._weight_scale": None},
}
ORDINARY = {
    "clip": {"text.position_ids": torch.int64, "logit_scale": None, "visual.conv1.weight": None},
    "cait": {"blocks.0.gamma_1": None, "blocks.0.ls1.gamma": None, "blocks.0.layer_scale": None},
    "swin": {"attn.relative_position_index": torch.int64, "attn.logit_scale": None},
    "batch norm": {
        "bn.weight": None,
        "bn.running_var": None,
        "bn.num_batches_tracked": torch.int64,
    },
    "norm": {"norm.scale": None, "norm.weight": None, "attn.bias": U8, "attn.masked_bias": None},
    "plain fp8": {"l.weight": F8, "l.bias": None},
    "scaled in bf16": {"l.weight": torch.bfloat16, "l.weight_scale": None},
    "mask": {"attn.weight": torch.bool, "attn.weight_scale": None},
    "counts": {"l.weight": torch.int64, "l.weight_scale": None},
}


def tensors(layout: dict, seed: int) -> dict[str, torch.Tensor]:
    """Codes are the same in all inputs, so that only scales would be averaged."""
    torch.manual_seed(seed)
    return {
        name: torch.randn(4) if dtype is None else torch.ones(4).to(dtype)
        for name, dtype in layout.items()
    }


def inputs(folder: Path, layout: dict, end: str = ".safetensors") -> list[str]:
    paths = [str(folder / f"{name}{end}") for name in "ab"]
    for seed, path in enumerate(paths):
        content = tensors(layout, seed)
        torch.save(content, path) if end == ".pt" else save_file(content, path)
    return paths


def program(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([LOFI, "average", *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("more", [[], ["--int", "first"]])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_refused(name, more, tmp_path):
    done = program(*inputs(tmp_path, LAYOUTS[name]), "-o", str(tmp_path / "out.safetensors"), *more)
    assert done.returncode == 1
    assert "has its scales in" in done.stderr and "Dequantise" in done.stderr
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("end", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_refused_from_python(name, end, tmp_path):
    for integers in ("equal", "first"):
        with pytest.raises(ValueError, match="mean of codes"):
            paths = inputs(tmp_path, LAYOUTS[name], end)
            lofi.average_checkpoints(paths, tmp_path / f"out{end}", integers=integers)


@pytest.mark.parametrize("end", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_names_are_no_codes(name, end, tmp_path):
    lofi.average_checkpoints(inputs(tmp_path, ORDINARY[name], end), tmp_path / f"out{end}")


def test_codes_and_scales_that_are_not_selected_come_from_the_first(tmp_path):
    layout = LAYOUTS["gptq"] | {"head.weight": None}
    paths, out = inputs(tmp_path, layout), str(tmp_path / "out.safetensors")
    assert program(*paths, "-o", out, "--only", "^head").returncode == 0
    for skipped in ("qweight", "scales"):  # the other half would be averaged
        assert program(*paths, "-o", out, "-f", "--skip", skipped).returncode == 1


def test_a_config_says_so(tmp_path):
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        save_file(tensors({"w": None}, seed), tmp_path / name / "model.safetensors")
        config = {"quantization_config": {"quant_method": "gptq"}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    done = program(str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "has a quantization_config (gptq)" in done.stderr and "Dequantise" in done.stderr


def test_integers_that_differ_name_option_and_argument(tmp_path):
    for i, name in enumerate("ab"):
        save_file({"ids": torch.arange(3) + i}, tmp_path / f"{name}.safetensors")
    paths = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    done = program(*paths, "-o", str(tmp_path / "out.safetensors"))
    assert "--int first" in done.stderr and 'integers="first"' in done.stderr
    assert "integers_first" not in done.stderr
