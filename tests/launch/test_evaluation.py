# SPDX-License-Identifier: MIT
"""Scripts that evaluate under the launcher: what they see is the average where all ranks are there,
and whatever they do, training is what it would have been without."""

import json
import re

import pytest
import torch
from harness import truth
from harness.launched import launch, load
from harness.rank_jobs import equal

# note(label): the model's first weight as the script sees it now. own_and_average(): for the test.
TOOLS = """
    import json, copy
    seen = {}

    def first(model):
        return [round(float(x), 7) for x in next(model.parameters()).detach().flatten()[:3]]

    def note(label, value):
        seen.setdefault(label, []).append(value)
        json.dump(seen, open(f"seen{dist.get_rank()}.json", "w"))

    def note_truth(label, model):
        # The real mean over nodes, by a collective of the test's own.
        import lofi
        with lofi.scope("world"):
            x = next(model.parameters()).detach().double().clone()
            dist.all_reduce(x)
        mean = (x / dist.get_world_size()).float()
        note(label, [round(float(v), 7) for v in mean.flatten()[:3]])

    @torch.no_grad()
    def evaluate(model, label="seen", data=3):
        model.eval()
        for step in range(data):
            model(batch(step))
            note(label, first(model))
        total = torch.ones(1)
        dist.all_reduce(total)

    def start(module=None):
        dist.init_process_group("gloo")
        torch.manual_seed(0)
        return DDP(module or nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
"""


def seen(folder, rank=0):
    return json.loads((folder / f"seen{rank}.json").read_text())


def run(folder, *parts, nodes=2, node_size=2, **env):
    ended = launch(folder, TOOLS, *parts, nodes=nodes, node_size=node_size, **env)
    for rank in ended:
        assert rank.code in (0, None) and not rank.error, rank
    return ended


def run_with_net(folder, script):
    head = """
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())  # as DeiT seeds: the copies are made of other weights
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    """
    return run(folder, head, script)


EPOCHS = """
    model = start()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        model.train()
        for step in range(3):
            optimizer.zero_grad()
            (model(batch(10 * epoch + step)) - 1).square().mean().backward()
            optimizer.step()
        note("own", first(model))
        note_truth("mean", model)
        evaluate(model)
        if dist.get_rank() == 0:
            torch.save(model.module.state_dict(), "best.pth")
        note("after", first(model))
    model.train()
    note("back", first(model))
"""


@pytest.mark.quick
def test_each_epoch_is_evaluated_as_the_average(tmp_path):
    ended = run(tmp_path, EPOCHS)
    for rank in range(4):
        told = seen(tmp_path, rank)
        assert told["own"][0] != told["mean"][0] and told["own"][1] != told["mean"][1]
        assert told["seen"] == [told["mean"][0]] * 3 + [told["mean"][1]] * 3
        assert told["after"] == told["mean"]  # until training goes on: a save here is the average
        assert told["back"] == [told["own"][1]]
    # The last epoch's average was the final one: nothing new was written beside it.
    best = load(tmp_path / "best.pth")
    assert [round(float(x), 7) for x in best["0.weight"].flatten()[:3]] == told["mean"][1]
    # Nor was it sent again.
    sent = re.search(r"averaged nodes \[0, 1\]: .* (\d+) bytes sent", ended[0].stderr)
    assert int(sent[1]) < 100


def test_training_is_the_same_without_evaluation(tmp_path):
    weights = {}
    for how in ("averaged", "node"):
        folder = tmp_path / how
        folder.mkdir()
        run(folder, EPOCHS, LOFI_EVAL=how)
        weights[how] = [seen(folder, rank)["own"] for rank in range(4)]
    assert weights["averaged"] == weights["node"]
    told = seen(tmp_path / "node")
    assert told["seen"] == [told["own"][0]] * 3 + [told["own"][1]] * 3  # the node's own


def test_one_node_sees_its_own_weights(tmp_path):
    run(tmp_path, EPOCHS, nodes=1, node_size=2)
    told = seen(tmp_path)
    assert told["own"] == told["mean"]
    assert told["seen"] == [told["own"][0]] * 3 + [told["own"][1]] * 3


# Each of these evaluates, or looks as if it did; `own` must come back, and the run must end.
HARMLESS = {
    "on rank 0 alone": """
        if dist.get_rank() == 0:
            model.eval()
            with torch.no_grad():
                model.module(batch(0))  # DDP itself would broadcast its buffers
            note("seen", first(model))
        dist.barrier()
        """,
    "training in eval mode": """
        model.train(False)
        train(model, steps=2)
        note("seen", first(model))
        """,
    "adversarial examples in eval mode": """
        model.eval()
        x = batch(0).requires_grad_()
        loss = model(x).square().mean()
        torch.autograd.grad(loss, x)
        note("seen", first(model))
        with torch.no_grad():
            model(x)
        note("seen", first(model))
        model.train()
        """,
    "a sub-module alone": """
        model.eval()
        with torch.no_grad():
            model.module[0](batch(0))
        note("seen", first(model))
        model.train()
        """,
    "no grad, but in training mode": """
        with torch.no_grad():
            model(batch(0))
        note("seen", first(model))
        """,
    "a deep copy": """
        twin = copy.deepcopy(model.module).eval()
        with torch.no_grad():
            twin(batch(0))
        note("seen", first(model))
        """,
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_is_no_evaluation_sees_own_weights(tmp_path, what):
    block = HARMLESS[what].replace("\n        ", "\n    ")
    ended = run(
        tmp_path,
        f"""
    model = start()
    train(model, steps=2)
    note("own", first(model))
    note_truth("mean", model)
    {block}
    note("back", first(model))
    train(model, steps=1)
    """,
        LOFI_EVAL_WAIT="1",
    )
    told = seen(tmp_path)
    assert told["mean"] != told["own"]
    if what == "training in eval mode":
        assert told["seen"] == told["back"] != told["own"]
    else:
        assert all(values == told["own"][0] for values in told["seen"] + told["back"])
    alone = [rank for rank in ended if "do not come to the evaluation" in rank.stderr]
    assert len(alone) == (1 if what == "on rank 0 alone" else 0)


# Each evaluates the average in a way of its own.
AVERAGED = {
    "the bare module": "evaluate(model.module)",
    "inference_mode": """
    with torch.inference_mode():
        evaluate(model)
    """,
    "two loaders, eval() each": """
    evaluate(model)
    evaluate(model)
    """,
    "a part of the model in eval mode already": """
    model.module[1].eval()
    evaluate(model)
    """,
    "deepcopy and pickle meanwhile": """
    import pickle
    evaluate(model)
    twins = [copy.deepcopy(model.module), pickle.loads(pickle.dumps(model.module))]
    assert all(first(twin) == first(model) for twin in twins)
    """,
    "a bare optimizer step follows": """
    evaluate(model)
    for parameter in model.parameters():
        parameter.grad = None
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    """,
}


@pytest.mark.parametrize("what", AVERAGED)
def test_what_is_an_evaluation_sees_the_average(tmp_path, what):
    run(
        tmp_path,
        f"""
    model = start()
    train(model, steps=2)
    note("own", first(model))
    note_truth("mean", model)
    {AVERAGED[what]}
    model.train()
    note("back", first(model))
    train(model, steps=1)
    """,
    )
    for rank in range(4):
        told = seen(tmp_path, rank)
        assert told["mean"] != told["own"] == told["back"]
        assert all(values == told["mean"][0] for values in told["seen"])


def test_a_node_that_stops_early_is_not_waited_for(tmp_path):
    """It is past this evaluation: the others see so, and evaluate their own weights."""
    ended = run(
        tmp_path,
        """
    model = start()
    train(model, steps=2)
    if dist.get_rank() < 2:
        evaluate(model)
        train(model, steps=1)
        note("own", first(model))
        evaluate(model, "late")
    """,
    )
    told = seen(tmp_path)
    assert told["late"] == [told["own"][0]] * 3
    assert "node(s) 1 do not come to this evaluation" in ended[0].stderr


def test_frequent_evaluations_are_remarked_on(tmp_path):
    ended = run(
        tmp_path,
        """
    model = start()
    for step in range(8):
        model.train()
        train(model, steps=1)
        evaluate(model, data=1)
    """,
    )
    assert "LOFI_EVAL=node" in ended[0].stderr


EMA = """
    {make}
    model = DDP(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        model.train()
        for step in range(3):
            optimizer.zero_grad()
            (model(batch(10 * epoch + step)) - 1).square().mean().backward()
            optimizer.step()
            {update}
        note("own", first(inner)); note_truth("mean", inner)
        model.train()
        inner.eval()
        with torch.no_grad():
            inner(batch(0))
        note("seen", first(inner))
    own_back = model.train()
    note_own(inner, "ema"); note_own(model.module)
    if dist.get_rank() == 0:
        torch.save(dict(model=model.module.state_dict(), model_ema=inner.state_dict(), epoch=2),
                   "checkpoint.pth")
"""
KINDS = {
    "timm": (
        "from timm.utils import ModelEma; ema = ModelEma(net, decay=0.5); inner = ema.ema",
        "ema.update(model)",
    ),
    "timm V2": (
        "from timm.utils import ModelEmaV2; ema = ModelEmaV2(net, decay=0.5); inner = ema.module",
        "ema.update(model)",
    ),
    "timm V3": (
        "from timm.utils import ModelEmaV3; ema = ModelEmaV3(net, decay=0.5); inner = ema.module",
        "ema.update(model)",
    ),
    "torch": (
        "from torch.optim.swa_utils import AveragedModel; ema = AveragedModel(net); "
        "inner = ema.module",
        "ema.update_parameters(model.module)",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ema_copies_start_equal_are_evaluated_and_averaged(tmp_path, kind):
    make, update = KINDS[kind]
    script = EMA.format(make=make, update=update)
    run_with_net(tmp_path, script)
    for rank in range(4):
        told = seen(tmp_path, rank)
        assert told["own"][0] != told["mean"][0]
        assert told["seen"] == told["mean"]
    for one, other in ((0, 1), (2, 3)):  # equal in a node, because they started equal
        assert equal(load(tmp_path / f"ema{one}.test"), load(tmp_path / f"ema{other}.test"))
    written = load(tmp_path / "checkpoint.lofi.pth")
    for entry, name in (("model", "own"), ("model_ema", "ema")):
        nodes = [load(tmp_path / f"{name}{rank}.test") for rank in (0, 2)]
        for key, value in written[entry].items():
            if value.is_floating_point():
                mean = truth.mean([node[key] for node in nodes])
                assert torch.equal(value, mean), (entry, key)
    assert written["epoch"] == 2


def test_one_rank_that_calls_train_does_not_leave_the_others(tmp_path):
    """Collectives stay real until training goes on, and metrics may be reduced after train()."""
    run(
        tmp_path,
        """
    model = start()
    train(model, steps=2)
    evaluate(model)
    if dist.get_rank() == 0:  # a sample of what the model says
        model.module.eval()
        with torch.no_grad():
            model.module(batch(0))
        model.train()
    dist.barrier()
    model.train()
    total = torch.ones(1)
    dist.all_reduce(total)
    note("total", total.item())
    train(model, steps=1)
    import lofi
    note("phase", lofi.phase())
    """,
        LOFI_EVAL_WAIT="3",
    )
    for rank in range(4):
        assert seen(tmp_path, rank)["total"] == [4.0] and seen(tmp_path, rank)["phase"] == ["train"]


def test_rank_0_alone_where_it_is_its_node(tmp_path):
    """The other node trains on: it is seen to be past, and not waited for."""
    ended = run(
        tmp_path,
        """
    model = start(nn.Linear(4, 2))
    train(model, steps=2)
    if dist.get_rank() == 0:
        begun = time.monotonic()
        evaluate_alone = model.module.eval()
        with torch.no_grad():
            model.module(batch(0))
        note("seconds", time.monotonic() - begun)
        model.train()
    else:
        for step in range(40):
            train(model, steps=1)
            time.sleep(0.1)
    """,
        node_size=1,
    )
    assert seen(tmp_path)["seconds"][0] < 3.5
    assert "do not come to this evaluation" in ended[0].stderr


def test_a_second_process_group(tmp_path):
    """It finds none of the first one's words in the store."""
    run(
        tmp_path,
        """
    for _ in range(2):
        model = start()
        train(model, steps=2)
        note_truth("mean", model)
        evaluate(model, data=1)
        dist.destroy_process_group()
    """,
    )
    told = seen(tmp_path)
    assert told["seen"] == told["mean"]


HSDP = """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("nodes", "ranks")))

    def whole():
        return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))

    def note_whole(name):
        with open(f"{name}{dist.get_rank()}.test", "wb") as file:
            file.write(dump(whole()))

    train(model)
    note_whole("own")
    state = whole()
    if dist.get_rank() == 0:
        torch.save(dict(model=state, epoch=1), "checkpoint.pth")
    model.eval()
    with torch.no_grad():
        model(batch(0))
    note_whole("seen")
    model.train()
    note_whole("back")
"""


def test_a_model_that_is_sharded_in_its_node(tmp_path):
    run(tmp_path, HSDP)
    states = {
        name: [load(tmp_path / f"{name}{rank}.test") for rank in range(4)]
        for name in ("own", "seen", "back")
    }
    own = states["own"]
    mean = truth.mean_of_states(own[0], own[2])
    assert not equal(own[0], own[2]) and equal(own[0], own[1])
    assert all(equal(state, mean) for state in states["seen"])
    assert all(equal(back, before) for back, before in zip(states["back"], own, strict=True))
    written = load(tmp_path / "checkpoint.lofi.pth")
    assert equal(written["model"], mean) and written["epoch"] == 1


@pytest.mark.quick
def test_a_copy_in_a_function_that_has_returned(tmp_path):
    run_with_net(
        tmp_path,
        """
    def main():
        from timm.utils import ModelEma
        ema = ModelEma(net, decay=0.5)
        model = DDP(net)
        train(model)
        ema.update(model)
        note_own(ema.ema, "ema")
        if dist.get_rank() == 0:
            torch.save(dict(model_ema=ema.ema.state_dict()), "checkpoint.pth")
    main()
    """,
    )
    written = load(tmp_path / "checkpoint.lofi.pth")["model_ema"]
    nodes = [load(tmp_path / f"ema{rank}.test") for rank in (0, 2)]
    for key, value in written.items():
        assert torch.equal(value, truth.mean([node[key] for node in nodes]))


def test_a_copy_on_rank_0_alone(tmp_path):
    """Nobody waits for the ranks that have none; its own node's is what it stays."""
    ended = run_with_net(
        tmp_path,
        """
    from timm.utils import ModelEma
    model = DDP(net)
    ema = ModelEma(net) if dist.get_rank() == 0 else None
    train(model)
    if ema:
        ema.update(model)
    """,
    )
    assert "not every rank holds the copy" in ended[0].stderr
    assert "averaged nodes [0, 1]" in ended[0].stderr


def test_rank_0_alone_is_not_waited_for(tmp_path):
    """As nanoGPT does: the other ranks of its node are in the next forward already. The grace of
    30 s is for ranks of which nothing is known."""
    ended = run(
        tmp_path,
        """
    model = start(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    for step in range(4):
        train(model, steps=1)
        if dist.get_rank() == 0:
            begin = time.monotonic()
            model.eval()
            with torch.no_grad():
                model(batch(0))
            model.train()
            note("took", time.monotonic() - begin)
    train(model, steps=1)
    """,
    )
    told = seen(tmp_path)
    assert len(told["took"]) == 4 and max(told["took"]) < 15
    print(told["took"])
    assert len([1 for rank in ended if "do not come to the evaluation" in rank.stderr]) == 1
    assert not any("waitForInput" in rank.stderr for rank in ended)
