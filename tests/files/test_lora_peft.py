# SPDX-License-Identifier: MIT
"""Adapters that PEFT saved, averaged, loaded by PEFT, and merged into the model."""

import json

import pytest
import torch
from harness.checkpoints import lofi

peft = pytest.importorskip("peft")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(20, 6)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(2))
        self.conv = torch.nn.Conv2d(3, 5, 3)
        self.head = torch.nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.layers[1](self.layers[0](self.embed(x))))


def model():
    torch.manual_seed(0)
    return Model().double()


def save(folder, seed, **config):
    """An adapter with random factors."""
    config = {"target_modules": ["embed", "0", "1", "conv"], "modules_to_save": ["head"]} | config
    tuned = peft.get_peft_model(model(), peft.LoraConfig(**config))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    tuned.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # which is not copied, and said so
    return folder


def merged(folder):
    """The model's weights with the adapter in them."""
    tuned = peft.PeftModel.from_pretrained(model(), folder)
    with torch.no_grad():
        return tuned.merge_and_unload().state_dict()


def change(folder):
    """What the adapter changes in each tensor."""
    before, after = model().state_dict(), merged(folder)
    assert before.keys() == after.keys()
    return {name: after[name] - before[name] for name in before}


CASES = {
    "equal": ([{"r": 3, "lora_alpha": 5}, {"r": 3, "lora_alpha": 5}], None),
    "alpha": ([{"r": 3, "lora_alpha": 8}, {"r": 3, "lora_alpha": 64}], [1, 3]),
    "rank": ([{"r": 2, "lora_alpha": 3}, {"r": 5, "lora_alpha": 7}], [2, 1]),
    "rslora": ([{"r": 3, "use_rslora": True}, {"r": 2, "use_rslora": True}], None),
    "mixed": ([{"r": 3, "use_rslora": True}, {"r": 3}, {"r": 1}], [1, 2, 3]),
    "patterns": (
        [
            {"r": 3, "rank_pattern": {"0": 2, "conv": 4}, "alpha_pattern": {"layers.1": 9}},
            {"r": 2, "rank_pattern": {"layers.(0|1)": 4}, "alpha_pattern": {"^embed": 3}},
        ],
        None,
    ),
}


@pytest.mark.parametrize("option", ["exact", "svd=18"])
@pytest.mark.parametrize("case", CASES)
def test_peft_adds_the_mean_of_the_products(tmp_path, case, option):
    """The rank of the second option holds all of them, so that it loses nothing."""
    configs, weights = CASES[case]
    folders = [save(tmp_path / f"{i}", i, **config) for i, config in enumerate(configs)]
    weights = weights or [1] * len(folders)
    listed = ",".join(map(str, weights))
    done = lofi("average", *folders, "-o", tmp_path / "out", "--lora", option, "-w", listed)
    assert not done.stderr
    each = [change(folder) for folder in folders]
    for name, found in change(tmp_path / "out").items():
        wanted = sum(w * one[name] for w, one in zip(weights, each, strict=True)) / sum(weights)
        assert torch.allclose(found, wanted, rtol=0, atol=1e-12), name
        assert wanted.abs().max() > 0.1 or not name.endswith("weight")


def test_a_plain_mean_is_far_from_that(tmp_path):
    """Why products are averaged at all: the mean of the factors is another adapter."""
    folders = [save(tmp_path / f"{i}", i, r=3) for i in range(2)]
    lofi("average", *folders, "-o", tmp_path / "out")
    each, name = [change(folder) for folder in folders], "layers.0.weight"
    wanted = (each[0][name] + each[1][name]) / 2
    assert (change(tmp_path / "out")[name] - wanted).norm() > 0.3 * wanted.norm()


def test_dora_is_refused(tmp_path):
    folders = [
        save(tmp_path / f"{i}", i, use_dora=True, target_modules=["0"], modules_to_save=None)
        for i in range(2)
    ]
    done = lofi("average", *folders, "-o", tmp_path / "out", "--lora", "exact", check=False)
    assert done.returncode == 1 and "use_dora is true" in done.stderr
    done = lofi("average", *folders, "-o", tmp_path / "out")
    assert "merge each into its model" in done.stderr and "--lora" not in done.stderr


def test_what_is_written_is_a_config_of_peft(tmp_path):
    folders = [
        save(tmp_path / f"{i}", i, **config) for i, config in enumerate(CASES["patterns"][0])
    ]
    lofi("average", *folders, "-o", tmp_path / "out", "--lora", "exact")
    config = peft.LoraConfig.from_pretrained(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config.r == written["r"] and config.rank_pattern == written["rank_pattern"]
    assert config.use_rslora is False and set(config.target_modules) == {"embed", "0", "1", "conv"}
