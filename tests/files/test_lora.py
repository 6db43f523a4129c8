# SPDX-License-Identifier: MIT
"""`lofi average --lora` against products in numpy's float64 and numpy's singular values."""

import itertools
import json
import re

import numpy as np
import pytest
from harness.checkpoints import Tensor, header_of, lofi, read, write

CONFIG = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, "bias": "none",
    "target_modules": ["q", "v"], "fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {},
    "use_dora": False, "base_model_name_or_path": "some/model", "task_type": "CAUSAL_LM",
    "modules_to_save": None, "lora_dropout": 0.0, "init_lora_weights": True,
    "layers_to_transform": None, "peft_version": "0.18.0",
}  # fmt: skip
SIZES = {"layers.0.q": (12, 9), "layers.0.v": (7, 15), "layers.1.q": (12, 9)}
EPSILON = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}


def stem(module):
    return f"base_model.model.{module}"


def factors(rng, rank, sizes=SIZES):
    """{module: (A, B)}; `rank` may be a dict."""
    ranks = rank if isinstance(rank, dict) else dict.fromkeys(sizes, rank)
    return {
        module: (rng.normal(size=(ranks[module], n)), rng.normal(size=(m, ranks[module])))
        for module, (m, n) in sizes.items()
    }


def adapter(folder, pairs, kind="F32", more=None, **config):
    """Writes the adapter, and returns its factors as they are rounded."""
    folder.mkdir()
    config = CONFIG | {"r": next(iter(pairs.values()))[0].shape[0]} | config
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    tensors = {}
    for module, (a, b) in pairs.items():
        tensors[f"{stem(module)}.lora_A.weight"] = Tensor.of(kind, a)
        tensors[f"{stem(module)}.lora_B.weight"] = Tensor.of(kind, b)
    write(folder / "adapter_model.safetensors", tensors | (more or {}), {"format": "pt"})
    return {
        module: tuple(tensors[f"{stem(module)}.lora_{x}.weight"].data for x in "AB")
        for module in pairs
    }


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def by_pattern(patterns, module, otherwise):
    """As PEFT looks a module up."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def scale_of(config, module):
    rank = by_pattern(config["rank_pattern"], module, config["r"])
    alpha = by_pattern(config["alpha_pattern"], module, config["lora_alpha"])
    return rank, alpha / (rank**0.5 if config["use_rslora"] else rank)


def products(folder, modules=SIZES):
    """What the adapter adds to each module, by its files alone."""
    tensors, config, result = read(folder / "adapter_model.safetensors"), config_of(folder), {}
    for module in modules:
        a = tensors[f"{stem(module)}.lora_A.weight"].data
        b = tensors[f"{stem(module)}.lora_B.weight"].data
        rank, scale = scale_of(config, module)
        assert a.shape[0] == b.shape[1] == rank
        result[module] = scale * (b.reshape(b.shape[0], rank) @ a.reshape(rank, -1))
    return result


def mean_of(folders, weights=None, modules=SIZES):
    weights = weights or [1] * len(folders)
    each = [products(folder, modules) for folder in folders]
    return {
        module: sum(w * p[module] for w, p in zip(weights, each, strict=True)) / sum(weights)
        for module in modules
    }


def distance(found, wanted):
    """Relative, in the Frobenius norm: of each module, and of all."""
    lost = {m: np.linalg.norm(found[m] - wanted[m]) for m in wanted}
    norm = {m: np.linalg.norm(wanted[m]) for m in wanted}
    whole = np.sqrt(sum(x**2 for x in lost.values()) / sum(x**2 for x in norm.values()))
    return {m: lost[m] / norm[m] for m in wanted}, whole


@pytest.fixture
def make(tmp_path):
    """Writes adapters with factors of their own; returns their folders."""
    numbers = itertools.count()

    def of(*options, kind="F32", sizes=SIZES):
        folders = []
        for option in options:
            number = next(numbers)
            option = {"rank": 4, "kind": kind} | option
            folders.append(tmp_path / f"run{number}")
            pairs = factors(np.random.default_rng(number), option.pop("rank"), sizes)
            adapter(folders[-1], pairs, **option)
        return folders

    return of


# ---- a plain average ----------------------------------------------------------------------------


def test_plain_warns_once_and_keeps_what_it_did(make, tmp_path):
    folders = make({}, {})
    done = lofi("average", *folders, "-o", tmp_path / "out")
    assert done.stderr.count("lofi warn") == 1 and done.stderr.count("\n") == 1
    assert "--lora exact" in done.stderr and "--lora svd=R" in done.stderr
    name = f"{stem('layers.0.q')}.lora_A.weight"
    each = [read(folder / "adapter_model.safetensors")[name].data for folder in folders]
    found = read(tmp_path / "out" / "adapter_model.safetensors")[name].data
    assert np.allclose(found, sum(each) / 2, rtol=2**-23)
    assert not lofi("average", *folders, "-o", tmp_path / "quiet", "-q").stderr


@pytest.mark.parametrize("shared", [0, 1])
def test_no_warning_where_the_mean_is_the_products(tmp_path, shared):
    """A, or B, is the same in both."""
    first, second = (factors(np.random.default_rng(i), 4) for i in (0, 1))
    pick = {m: (first[m][0], second[m][1]) if shared == 0 else (second[m][0], first[m][1])
            for m in SIZES}  # fmt: skip
    folders = [tmp_path / "a", tmp_path / "b"]
    adapter(folders[0], first)
    adapter(folders[1], pick)
    done = lofi("average", *folders, "-o", tmp_path / "out")
    assert not done.stderr
    assert distance(products(tmp_path / "out"), mean_of(folders))[1] < 1e-7


def test_one_adapter_alone_is_no_average(make, tmp_path):
    assert not lofi("average", *make({}), "-o", tmp_path / "out").stderr


def test_files_without_configs_are_warned_of(make, tmp_path):
    folders = make({}, {})
    (folders[1] / "adapter_config.json").unlink()
    files = [folder / "adapter_model.safetensors" for folder in folders]
    done = lofi("average", *files, "-o", tmp_path / "out.safetensors")
    assert "without an adapter_config.json beside each" in done.stderr


REFUSED = [
    ({"lora_alpha": 64}, "lora_alpha", "8", "64"),
    ({"rank": 2}, "r", "4", "2"),
    ({"use_rslora": True}, "use_rslora", "false", "true"),
    ({"alpha_pattern": {"q": 2}}, "alpha_pattern", "{}", '{"q":2}'),
    ({"target_modules": ["q", "k"]}, "target_modules", '["q","v"]', '["q","k"]'),
    ({"bias": "all"}, "bias", '"none"', '"all"'),
    ({"fan_in_fan_out": True}, "fan_in_fan_out", "false", "true"),
    ({"use_dora": True}, "use_dora", "false", "true"),
    ({"base_model_name_or_path": "b"}, "base_model_name_or_path", '"some/model"', '"b"'),
    ({"task_type": "SEQ_CLS"}, "task_type", '"CAUSAL_LM"', '"SEQ_CLS"'),
    ({"peft_type": "ADALORA"}, "peft_type", '"LORA"', '"ADALORA"'),
    ({"modules_to_save": ["head"]}, "modules_to_save", "null", '["head"]'),
    ({"layers_to_transform": [0]}, "layers_to_transform", "null", "[0]"),
    ({"layer_replication": [[0, 4]]}, "layer_replication", "not given", "[[0,4]]"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights", "true", '"pissa"'),
]


@pytest.mark.parametrize("option", [None, "exact"])
@pytest.mark.parametrize(("change", "key", "first", "other"), REFUSED)
def test_configs_that_do_not_fit(make, tmp_path, option, change, key, first, other):
    folders = make({}, change)
    arguments = ["--lora", option] if option else []
    done = lofi("average", *folders, "-o", tmp_path / "out", *arguments, check=False)
    if option and key in ("lora_alpha", "r", "use_rslora", "alpha_pattern"):
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert f"do not fit together: {key} is {first} in " in done.stderr
    assert f" and {other} in " in done.stderr
    assert all(str(folder / "adapter_config.json") in done.stderr for folder in folders)


def test_a_user_may_say_that_configs_fit(make, tmp_path):
    """Not so of the scales, without which nothing is the average of anything."""
    folders = make({}, {"base_model_name_or_path": "b"}, {"lora_alpha": 9})
    lofi("average", *folders[:2], "-o", tmp_path / "out", "--force-config")
    done = lofi("average", *folders, "-o", tmp_path / "bad", "--force-config", check=False)
    assert done.returncode == 1 and "lora_alpha is 8" in done.stderr


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ({"target_modules": ["v", "q"]}, {}),
        ({"lora_dropout": 0.1, "peft_version": "0.17.0", "inference_mode": True}, {}),
        ({"modules_to_save": []}, {}),
        ({"layer_replication": None, "trainable_token_indices": None}, {}),
        ({"a_key_of_the_future": 5}, {}),
        ({"base_model_name_or_path": None, "task_type": None}, {}),
        ({"init_lora_weights": "gaussian"}, {}),
        ({"lora_alpha": 8.0}, {}),
        ({"layers_to_transform": [1]}, {"layers_to_transform": 1}),
    ],
)
def test_configs_that_fit(make, tmp_path, first, other):
    folders = make(first, other)
    lofi("average", *folders, "-o", tmp_path / "out")
    lofi("average", *reversed(folders), "-o", tmp_path / "back")


def test_a_base_has_to_fit_too(make, tmp_path):
    *folders, base = make({}, {}, {"lora_alpha": 5})
    arguments = ["--base", base, "--alpha", "0.5", "-o", tmp_path / "out"]
    done = lofi("average", *folders, *arguments, check=False)
    assert done.returncode == 1 and "lora_alpha is 8" in done.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [("[1]", "not an object"), ("{", "not valid"), ("[" * 99, "deeper"), ("", "nothing")],
)
def test_damaged_configs(make, tmp_path, text, told):
    folders = make({}, {})
    (folders[1] / "adapter_config.json").write_text(text)
    done = lofi("average", *folders, "-o", tmp_path / "out", check=False)
    assert done.returncode == 1 and told in done.stderr
    assert str(folders[1] / "adapter_config.json") in done.stderr


def test_other_adapters_are_compared(tmp_path):
    """IA3 multiplies nothing that it trains: no warning; prompts of another length are refused."""
    name = "base_model.model.layers.0.q.ia3_l"
    for number, change in enumerate([{}, {}, {"feedforward_modules": ["q"]}]):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        config = {"peft_type": "IA3", "feedforward_modules": ["v"]} | change
        (folder / "adapter_config.json").write_text(json.dumps(config))
        write(folder / "adapter_model.safetensors", {name: Tensor.of("F32", np.ones((4, 1)))})
    runs = [tmp_path / f"run{number}" for number in range(3)]
    assert not lofi("average", *runs[:2], "-o", tmp_path / "out").stderr
    done = lofi("average", *runs[1:], "-o", tmp_path / "bad", check=False)
    assert done.returncode == 1 and "feedforward_modules" in done.stderr


# ---- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("count", [2, 3])
def test_exact_of_equal_scales_is_exact(make, tmp_path, kind, count):
    """All factors stay as they are, whatever the number of inputs; alpha does, too."""
    folders = make(*[{}] * count, kind=kind)
    out = tmp_path / "out"
    done = lofi("average", *folders, "-o", out, "--lora", "exact", "--verify", "--json")
    assert not done.stderr
    report = json.loads(done.stdout)
    assert (report["products"], report["error"], report["worst_error"]) == (3, 0, 0)
    config = config_of(out)
    assert (config["r"], config["lora_alpha"]) == (4 * count, 8)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    each = [read(folder / "adapter_model.safetensors") for folder in folders]
    for name, tensor in read(out / "adapter_model.safetensors").items():
        axis = 0 if "lora_A" in name else 1
        assert np.array_equal(tensor.raw, np.concatenate([e[name].raw for e in each], axis=axis))
    assert distance(products(out), mean_of(folders))[1] < 1e-15


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ([{"lora_alpha": 8}, {"lora_alpha": 64}], None),
        ([{"rank": 4}, {"rank": 2, "lora_alpha": 3}, {"rank": 5, "use_rslora": True}], [2, 1, 4]),
        ([{"lora_alpha": 7}, {"lora_alpha": 9}], [0.3, 0.9]),
        ([{}, {}, {"rank": 3}], [1, 0, 1]),
        ([{"alpha_pattern": {"q": 20, "layers.0.v": 1}}, {"alpha_pattern": {r"1\.q": 2}}], None),
    ],
)
def test_exact(make, tmp_path, kind, options, weights):
    folders = make(*options, kind=kind)
    out = tmp_path / "out"
    arguments = ["--weights", ",".join(map(str, weights))] if weights else []
    done = lofi("average", *folders, "-o", out, "--lora", "exact", "--json", *arguments)
    each, whole = distance(products(out), mean_of(folders, weights))
    report = json.loads(done.stdout)
    assert whole <= EPSILON[kind] + 1e-15
    if kind != "F64":  # where the truth has errors of its own
        assert report["error"] == pytest.approx(whole, rel=1e-3, abs=1e-14)
        assert report["worst_error"] == pytest.approx(max(each.values()), rel=1e-3, abs=1e-14)
    used = [f for f, w in zip(folders, weights or [1] * 9, strict=False) if w]
    rank = sum(config_of(folder)["r"] for folder in used)
    header = header_of(out / "adapter_model.safetensors")
    assert header[f"{stem('layers.0.q')}.lora_A.weight"]["shape"] == [rank, 9]
    assert header[f"{stem('layers.0.q')}.lora_B.weight"]["shape"] == [12, rank]
    assert header["__metadata__"]["lofi.lora"] == "exact"


@pytest.mark.parametrize("alphas", [(8, 64), (1, 32), (12, 3)])
def test_scales_that_are_powers_of_two_apart_are_exact(make, tmp_path, alphas):
    folders = make(*[{"lora_alpha": alpha} for alpha in alphas], kind="BF16")
    done = lofi("average", *folders, "-o", tmp_path / "out", "--lora", "exact", "--json")
    assert json.loads(done.stdout)["error"] == 0
    assert distance(products(tmp_path / "out"), mean_of(folders))[1] < 1e-15


def test_ranks_of_patterns(make, tmp_path):
    """Modules of several ranks, and names of which one is the end of another."""
    sizes = {"q": (5, 6), "x.q": (5, 6), "xaq": (5, 6), "layers.10.q": (4, 4), "layers.0.q": (4, 4)}
    ranks = {"q": 2, "x.q": 3, "xaq": 3, "layers.10.q": 3, "layers.0.q": 1}
    pattern = {"layers.0.q": 1, "^q": 2}
    option = {"rank": ranks, "r": 3, "rank_pattern": pattern, "target_modules": ["q", "xaq"]}
    folders = make(dict(option), dict(option), sizes=sizes)
    out = tmp_path / "out"
    lofi("average", *folders, "-o", out, "--lora", "exact")
    assert config_of(out)["r"] == 6 and len(config_of(out)["rank_pattern"]) == 2
    assert distance(products(out, sizes), mean_of(folders, modules=sizes))[1] < 1e-7


def test_a_shared_a_keeps_the_rank(tmp_path):
    rng, folders = np.random.default_rng(5), [tmp_path / name for name in "abc"]
    shared = factors(rng, 4)
    for folder, alpha in zip(folders, (8, 8, 3), strict=True):
        pairs = {m: (a, rng.normal(size=b.shape)) for m, (a, b) in shared.items()}
        adapter(folder, pairs, lora_alpha=alpha)
    lofi("average", *folders, "-o", tmp_path / "out", "--lora", "exact", "-w", "0,1,2")
    assert config_of(tmp_path / "out")["r"] == 4
    wanted = mean_of(folders, [0, 1, 2])
    assert distance(products(tmp_path / "out"), wanted)[1] < 1e-7


def test_with_a_base(make, tmp_path):
    *folders, base = make({}, {}, {"rank": 3, "lora_alpha": 5})
    for option, tolerance in (("exact", 1e-7), ("svd=11", 1e-6)):
        out = tmp_path / option
        lofi("average", *folders, "--base", base, "--alpha", "0.75", "-o", out, "--lora", option)
        mean, start = mean_of(folders), products(base)
        wanted = {m: 0.25 * start[m] + 0.75 * mean[m] for m in SIZES}
        assert distance(products(out), wanted)[1] < tolerance


@pytest.mark.parametrize(("option", "tolerance"), [("exact", 1e-7), ("svd=12", 1e-6)])
def test_coefficients(make, tmp_path, option, tolerance):
    """Task arithmetic: coefficients are not divided by their sum, and may be negative."""
    *folders, base = make({}, {"rank": 5, "lora_alpha": 9}, {"rank": 3})
    first, second, start = (products(folder) for folder in (*folders, base))
    arguments = ["-w", "1.5,-0.75", "--no-normalize", "--lora", option]
    lofi("average", *folders, "-o", tmp_path / "sum", *arguments)
    wanted = {m: 1.5 * first[m] - 0.75 * second[m] for m in SIZES}
    assert distance(products(tmp_path / "sum"), wanted)[1] < tolerance
    arguments += ["--base", base, "--alpha", "0.5"]
    lofi("average", *folders, "-o", tmp_path / "moved", *arguments)
    wanted = {m: (1 - 0.5 * 0.75) * start[m] + 0.5 * wanted[m] for m in SIZES}
    assert distance(products(tmp_path / "moved"), wanted)[1] < tolerance


def test_other_tensors_are_averaged_and_files_copied(tmp_path):
    name, folders = "base_model.model.head.weight", [tmp_path / "a", tmp_path / "b"]
    for value, folder in enumerate(folders):
        more = {name: Tensor.of("F32", np.full((3, 2), 1.0 + 2 * value))}
        pairs = factors(np.random.default_rng(value), 4)
        adapter(folder, pairs, more=more, modules_to_save=["head"])
        (folder / "tokenizer.json").write_text("{}")
    lofi("average", *folders, "-o", tmp_path / "out", "--lora", "exact")
    found = read(tmp_path / "out" / "adapter_model.safetensors")
    assert np.array_equal(found[name].data, np.full((3, 2), 2.0))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    config = config_of(tmp_path / "out")
    assert config["modules_to_save"] == ["head"] and config["target_modules"] == ["q", "v"]


@pytest.mark.parametrize("option", ["exact", "svd=3"])
def test_other_shapes_and_names(tmp_path, option):
    """Embeddings, convolutions, and the name of an adapter within the tensors'."""
    rng, folders = np.random.default_rng(7), [tmp_path / "a", tmp_path / "b"]
    shapes = {
        "e.lora_embedding_A": (2, 30), "e.lora_embedding_B": (6, 2),
        "c.lora_A.default.weight": (2, 3, 5, 5), "c.lora_B.default.weight": (8, 2, 1, 1),
    }  # fmt: skip
    each = []
    for folder in folders:
        more = {stem(n): Tensor.of("F32", rng.normal(size=s)) for n, s in shapes.items()}
        each.append({n: more[stem(n)].data for n in shapes})
        adapter(folder, factors(rng, 2), more=more, lora_alpha=2)
    lofi("average", *folders, "-o", tmp_path / "out", "--lora", option)
    rank = 4 if option == "exact" else 3
    found = read(tmp_path / "out" / "adapter_model.safetensors")
    _, scale = scale_of(config_of(tmp_path / "out"), "e")
    for left, right in (list(shapes)[:2], list(shapes)[2:]):
        a, b = found[stem(left)].data, found[stem(right)].data
        assert a.shape == (rank, *shapes[left][1:]) and b.shape[1] == rank
        assert b.shape[2:] == shapes[right][2:]
        truth = sum(e[right].reshape(-1, 2) @ e[left].reshape(2, -1) for e in each) / 2
        if option != "exact":
            truth = best(truth, 3)
        found_product = scale * b.reshape(-1, rank) @ a.reshape(rank, -1)
        assert np.linalg.norm(found_product - truth) < 1e-6 * np.linalg.norm(truth)


def test_another_dtype_and_shards(make, tmp_path):
    folders = make({}, {}, kind="BF16")
    arguments = ["--lora", "exact", "--dtype", "float32", "--shard-size", "200"]
    lofi("average", *folders, "-o", tmp_path / "out", *arguments, "--verify")
    index = json.loads((tmp_path / "out" / "adapter_model.safetensors.index.json").read_text())
    tensors = {}
    for file in set(index["weight_map"].values()):
        tensors |= read(tmp_path / "out" / file)
    assert len(tensors) == 6 and all(tensor.kind == "F32" for tensor in tensors.values())
    name = f"{stem('layers.0.v')}.lora_B.weight"
    each = [read(folder / "adapter_model.safetensors")[name].data for folder in folders]
    assert np.array_equal(tensors[name].data, np.concatenate(each, axis=1))


# ---- svd ----------------------------------------------------------------------------------------


def best(product, rank):
    u, s, v = np.linalg.svd(product, full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank]


@pytest.mark.parametrize("kind", ["F64", "F32", "BF16"])
@pytest.mark.parametrize("rank", [1, 3, 7, 8, 20])
def test_svd_is_the_best_of_its_rank(make, tmp_path, kind, rank):
    folders = make({"lora_alpha": 3}, {"lora_alpha": 11, "use_rslora": True}, kind=kind)
    out = tmp_path / "out"
    arguments = ["--lora", f"svd={rank}", "-w", "3,1", "--json", "--verify"]
    done = lofi("average", *folders, "-o", out, *arguments)
    wanted = mean_of(folders, [3, 1])
    assert config_of(out)["r"] == min(rank, 8)
    found = products(out)
    truth = {m: best(p, rank) for m, p in wanted.items()}
    assert distance(found, truth)[1] < 4 * EPSILON[kind] + 1e-13
    each, whole = distance(found, wanted)
    report = json.loads(done.stdout)
    assert report["error"] == pytest.approx(whole, rel=1e-4, abs=1e-13)
    assert report["worst_error"] == pytest.approx(max(each.values()), rel=1e-4, abs=1e-13)
    if rank < 7:
        assert report["worst"] == f"{stem(max(each, key=each.get))}.lora_A.weight"


@pytest.mark.parametrize("sizes", [{"q": (2, 3)}, {"q": (40, 2), "v": (1, 50)}, {"q": (1, 1)}])
def test_svd_of_sizes_below_the_ranks(make, tmp_path, sizes):
    folders = make({}, {}, {}, sizes=sizes, kind="F64")
    out = tmp_path / "out"
    lofi("average", *folders, "-o", out, "--lora", "svd=6")
    assert distance(products(out, sizes), mean_of(folders, modules=sizes))[1] < 1e-13


def test_svd_of_one_adapter_makes_it_smaller(make, tmp_path):
    (folder,) = make({}, kind="F64")
    lofi("average", folder, "-o", tmp_path / "out", "--lora", "svd=2")
    truth = {m: best(p, 2) for m, p in products(folder).items()}
    assert distance(products(tmp_path / "out"), truth)[1] < 1e-13


def test_svd_of_products_that_cancel_or_repeat(tmp_path):
    """The mean is zero; then of rank 4, in factors of rank 8."""
    pairs, folders = factors(np.random.default_rng(1), 4), [tmp_path / "a", tmp_path / "b"]
    adapter(folders[0], pairs, kind="F64")
    adapter(folders[1], {m: (a, -b) for m, (a, b) in pairs.items()}, kind="F64")
    lofi("average", *folders, "-o", tmp_path / "none", "--lora", "svd=8")
    each = products(folders[0])
    for module, product in products(tmp_path / "none").items():
        assert np.linalg.norm(product) <= 1e-14 * np.linalg.norm(each[module])
    done = lofi("average", folders[0], folders[0], "-o", tmp_path / "same", "--lora", "svd=4",
                "--json")  # fmt: skip
    assert json.loads(done.stdout)["worst_error"] < 1e-14
    assert distance(products(tmp_path / "same"), each)[1] < 1e-14


def test_threads_change_no_bit(make, tmp_path):
    folders = make({}, {"lora_alpha": 5})
    outputs = []
    for threads in (1, 5):
        out = tmp_path / f"out{threads}"
        lofi("average", *folders, "-o", out, "--lora", "svd=3", "-j", threads)
        outputs.append((out / "adapter_model.safetensors").read_bytes())
    assert outputs[0] == outputs[1]


def test_svd_needs_finite_numbers(tmp_path):
    pairs = factors(np.random.default_rng(1), 4)
    pairs["layers.0.v"][0][2, 3] = np.inf
    adapter(tmp_path / "a", pairs)
    done = lofi("average", tmp_path / "a", "-o", tmp_path / "out", "--lora", "svd=2", check=False)
    assert done.returncode == 1 and "layers.0.v.lora_A.weight" in done.stderr
    assert "not finite" in done.stderr and not (tmp_path / "out").exists()


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "svd", "svd=", "svd=0", "svd=-1", "svd=x", "svd=99999999999",
                                   "svd= 3", "svd=3x", "EXACT"])  # fmt: skip
def test_wrong_values(make, tmp_path, value):
    done = lofi("average", *make({}), "-o", tmp_path / "out", "--lora", value, check=False)
    assert done.returncode == 2 and f"lora is '{value}': choose exact, or svd=R" in done.stderr


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"use_dora": True}, "use_dora is true"),
        ({"lora_bias": True}, "lora_bias is true"),
        ({"target_parameters": ["x"]}, 'target_parameters is ["x"]'),
        ({"init_lora_weights": "pissa_niter_4"}, 'init_lora_weights is "pissa_niter_4"'),
        ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA'"),
        ({"r": 5}, "is to have the rank 5, and its weights have 4"),
        ({"lora_alpha": None}, "lora_alpha of the module"),
        ({"rank_pattern": {"(?:q)": 4}}, "is a pattern that is not understood"),
        ({"rank_pattern": {"(a{1,255}){1,255}": 4}}, "is a pattern that is not understood"),
        ({"rank_pattern": {r"layers\.\d\.q": 4}}, "is a pattern that is not understood"),
        ({"rank_pattern": {"(": 4}}, "is a pattern that is not understood"),
    ],
)
def test_configs_without_a_product(make, tmp_path, config, told):
    folders = make(config, config)
    done = lofi("average", *folders, "-o", tmp_path / "out", "--lora", "exact", check=False)
    assert done.returncode == 1 and told in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def refused(folder, *arguments):
    done = lofi("average", *arguments, "-o", folder / "out", check=False)
    assert done.returncode == 1 and not (folder / "out").exists()
    return done.stderr


def test_inputs_without_a_product(make, tmp_path):
    first, second = make({}, {})
    file = first / "adapter_model.safetensors"
    assert "name the folder" in refused(tmp_path, file, second, "--lora", "exact")
    assert "only or skip leave out" in refused(
        tmp_path, first, second, "--lora", "exact", "--skip", "layers.0"
    )
    (second / "adapter_config.json").unlink()
    assert "there is no adapter_config.json" in refused(tmp_path, first, second, "--lora", "exact")
    write(tmp_path / "model.safetensors", {"w": Tensor.of("F32", np.ones(3))})
    told = refused(tmp_path, tmp_path / "model.safetensors", "--lora", "svd=2")
    assert "it is no adapter" in told


@pytest.mark.parametrize(
    ("more", "without", "told"),
    [
        ({}, "layers.0.v.lora_B.weight", "and no '"),
        ({}, "layers.0.v.lora_A.weight", "2 factors A and 3 factors B"),
        ({"layers.0.v.lora_B.weight": (7, 5)}, None, "are not those of two factors"),
        ({"layers.0.v.lora_B.weight": (7,)}, None, "are not those of two factors"),
        ({"layers.0.v.lora_A.weight": (4, 0)}, None, "are not those of two factors"),
        ({"layers.0.v.lora_magnitude_vector": (7,)}, None, "more than A and B"),
        ({"layers.0.v.lora_B.bias": (7,)}, None, "more than A and B"),
        ({".lora_A": (4, 3), ".lora_B": (3, 4)}, None, None),
    ],
)
def test_tensors_without_a_product(tmp_path, more, without, told):
    more = {stem(name): Tensor.of("F32", np.ones(shape)) for name, shape in more.items()}
    adapter(tmp_path / "a", factors(np.random.default_rng(0), 4), more=more)
    path = tmp_path / "a" / "adapter_model.safetensors"
    if without:
        write(path, {n: t for n, t in read(path).items() if n != stem(without)})
    if told:
        assert told in refused(tmp_path, tmp_path / "a", "--lora", "svd=2")
    else:
        lofi("average", tmp_path / "a", "-o", tmp_path / "out", "--lora", "svd=2")


def test_sizes_that_differ(make, tmp_path):
    folders = [*make({}), *make({}, sizes=SIZES | {"layers.0.q": (12, 8)})]
    assert "of another size" in refused(tmp_path, *folders, "--lora", "exact")


def test_numbers_that_are_not_finite_are_told(make, tmp_path):
    """Where nothing is decomposed they are written, as in any average, and told."""
    first, second = make({"lora_alpha": 1}, {"lora_alpha": 9}, kind="F16")
    path = first / "adapter_model.safetensors"
    tensors, name = read(path), f"{stem('layers.0.q')}.lora_B.weight"
    data = tensors[name].data.copy()
    data[1, 2] = np.nan
    write(path, tensors | {name: Tensor.of("F16", data)})
    arguments = ["-o", tmp_path / "out", "--lora", "exact", "--json", "--verify"]
    done = lofi("average", first, second, *arguments, code=3)
    (told,) = json.loads(done.stdout)["nonfinite"]
    assert (told["tensor"], told["count"]) == (name, 1)
    assert f"{path}: the tensor '{name}' has NaN or infinities (1 of 48 numbers)" in done.stderr
    found = read(tmp_path / "out" / "adapter_model.safetensors")[name].data
    assert np.isnan(found[1, 2]) and np.isnan(found).sum() == 1


def test_a_soup_of_adapters(make, tmp_path):
    """Each mean that is scored is an adapter, with a config of its own rank."""
    folders = make({"lora_alpha": 3}, {"lora_alpha": 5}, {})
    score = "grep '\"r\":' {}/adapter_config.json | tr -d ,"  # the more, the better
    done = lofi("soup", *folders, "-o", tmp_path / "out", "--score", score, "--lora", "exact")
    assert "the mean of 3 of 3 checkpoints, score 12" in done.stdout and not done.stderr
    assert distance(products(tmp_path / "out"), mean_of(folders))[1] < 1e-7


# ---- from Python --------------------------------------------------------------------------------


def test_average_checkpoints(make, tmp_path):
    lofi_of_python = pytest.importorskip("lofi")
    folders = make({"lora_alpha": 8}, {"lora_alpha": 64})
    with pytest.raises(ValueError, match=r"lora_alpha is 8 in .* and 64 in"):
        lofi_of_python.average_checkpoints(folders, tmp_path / "out")
    lofi_of_python.average_checkpoints(folders, tmp_path / "exact", lora="exact", weights=[1, 3])
    lofi_of_python.average_checkpoints(folders, tmp_path / "svd", lora="svd=3")
    assert distance(products(tmp_path / "exact"), mean_of(folders, [1, 3]))[1] < 1e-7
    truth = {m: best(p, 3) for m, p in mean_of(folders).items()}
    assert distance(products(tmp_path / "svd"), truth)[1] < 1e-6
    with pytest.raises(ValueError, match="lora is 'best': choose exact, or svd=R"):
        lofi_of_python.average_checkpoints(folders, tmp_path / "out", lora="best")


@pytest.mark.parametrize("same", ["", "A", "B"])
def test_files_of_torch_are_warned_of(tmp_path, capfd, same):
    torch, lofi_of_python = pytest.importorskip("torch"), pytest.importorskip("lofi")
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for value, path in enumerate(paths):
        tensors = {f"q.lora_{x}.weight": torch.full((2, 2), 0.0 if x == same else 1.0 + value)
                   for x in "AB"}  # fmt: skip
        torch.save(tensors, path)
    lofi_of_python.average_checkpoints(paths, tmp_path / "out.bin")
    assert capfd.readouterr().err.count("it has LoRA factors") == (0 if same else 1)


def test_files_of_torch_have_no_products(tmp_path):
    torch, lofi_of_python = pytest.importorskip("torch"), pytest.importorskip("lofi")
    torch.save({"q.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match="lora is for adapters in safetensors files"):
        lofi_of_python.average_checkpoints(
            [tmp_path / "adapter_model.bin"], tmp_path / "out.bin", lora="exact"
        )
