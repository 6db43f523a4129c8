# SPDX-License-Identifier: MIT
"""Runs that end badly, or are told to end: nobody hangs, and nothing is lost."""

import time

import pytest
import torch
from harness import truth
from harness.launched import WRAPPED, launch, load
from harness.rank_jobs import equal

# Two nodes of two ranks each; `note_own` is for the test.
START = """
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DDP(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    train(model)
    note_own(model.module)
"""


@pytest.mark.parametrize("fails", ["sys.exit(1)", "raise ValueError('not finite')"])
def test_a_node_that_fails(tmp_path, fails):
    """The other one learns at once, and keeps what it has in a file that says what it is."""
    begun = time.monotonic()
    script = f"""
    if dist.get_rank() >= 2:
        {fails}
    """
    ended = launch(tmp_path, START, script, nodes=2, node_size=2)
    assert time.monotonic() - begun < 40
    assert [rank.code for rank in ended] == [1, 1, 1, 1]
    assert "node(s) [1] ended with an error" in ended[0].stderr
    assert "lofi-node0.pth" in ended[0].stderr and "lofi-node" not in ended[1].stderr
    kept = load(tmp_path / "lofi-node0.pth")
    assert equal(kept["model"], load(tmp_path / "own0.test"))
    assert kept["lofi"] == {"average": False, "node": 0, "nodes": 2}
    assert not (tmp_path / "lofi-node1.pth").exists()


def test_a_node_that_does_not_come(tmp_path):
    """It goes on for longer than LOFI_TIMEOUT: both keep their own weights."""
    script = """
    time.sleep(6 if dist.get_rank() >= 2 else 0)
    """
    ended = launch(tmp_path, START, script, nodes=2, node_size=2, LOFI_TIMEOUT="2")
    assert all(rank.code == 1 for rank in ended)
    for node in (0, 1):
        why = ("did not come within 2 s", "node(s) [0] ended with an error")[node]
        assert why in ended[2 * node].stderr
        kept = load(tmp_path / f"lofi-node{node}.pth")
        assert equal(kept["model"], load(tmp_path / f"own{2 * node}.test"))


def test_a_failure_while_the_average_is_in(tmp_path):
    """The script fails in an evaluation: nothing is averaged, the other node is told."""
    script = """
    model.eval()
    with torch.no_grad():
        model(batch(0))
    if dist.get_rank() >= 2:
        raise ValueError
    """
    ended = launch(tmp_path, START, script, nodes=2, node_size=2)
    assert all(rank.code == 1 for rank in ended)
    assert equal(load(tmp_path / "lofi-node0.pth")["model"], load(tmp_path / "own0.test"))


def test_ctrl_c(tmp_path):
    ended = launch(tmp_path, WRAPPED, "raise KeyboardInterrupt")
    assert all(rank.code == 1 for rank in ended)
    assert "holds the weights of node 0 alone" in ended[0].stderr


TOLD = """
    import signal
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DDP(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1000):
        if step == 3 + dist.get_rank() % 2:  # the ranks of a node, at different steps
            os.kill(os.getpid(), signal.SIGTERM)
        optimizer.zero_grad()
        if step % 2:
            with model.no_sync():
                (model(batch(step)) - 1).square().mean().backward()
        (model(batch(step)) - 1).square().mean().backward()
        optimizer.step()
        with open(f"own{dist.get_rank()}.test", "wb") as file:
            file.write(dump(model.module.state_dict()))
        steps = step + 1
        print(steps, file=open(f"steps{dist.get_rank()}", "w"))
"""


@pytest.mark.quick
def test_sigterm_averages_if_asked(tmp_path):
    ended = launch(tmp_path, TOLD, nodes=2, node_size=2, LOFI_ON_SIGTERM="average")
    assert all(rank.code in (0, None) for rank in ended), ended
    steps = [int((tmp_path / f"steps{rank}").read_text()) for rank in range(4)]
    assert steps[0] == steps[1] and steps[2] == steps[3] and max(steps) < 10
    nodes = [load(tmp_path / f"own{rank}.test") for rank in (0, 2)]
    average = load(tmp_path / "lofi-average.pth")
    for name, value in average.items():
        assert torch.equal(value, truth.mean([node[name] for node in nodes]))
    assert not list(tmp_path.glob("lofi-node*"))  # there for the case that the average fails
    assert "SIGTERM: node 0 stops" in ended[0].stderr


@pytest.mark.parametrize("how", ["sys.exit(0)", "pass"])
def test_destroy_in_a_finally(tmp_path, how):
    script = f"""
    try:
        {how}
    finally:
        dist.destroy_process_group()
    """
    ended = launch(tmp_path, WRAPPED, script)
    assert all(rank.code in (0, None) for rank in ended), ended
    assert "averaged nodes [0, 1]" in ended[0].stderr


def test_two_optimizers_and_nothing_wrapped(tmp_path):
    script = """
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    one, two = nn.Linear(4, 4), nn.Linear(4, 2)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (one, two)]
    for step in range(3):
        (two(one(batch(step))) - 1).square().mean().backward()
        for part in (*one.parameters(), *two.parameters()):
            dist.all_reduce(part.grad)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    note_own(nn.ModuleDict(dict(one=one, two=two)))
    if dist.get_rank() == 0:
        torch.save(dict(one=one.state_dict(), two=two.state_dict()), "both.pth")
    """
    launch(tmp_path, script)
    written = load(tmp_path / "both.lofi.pth")
    own = [load(tmp_path / f"own{rank}.test") for rank in (0, 1)]
    for part in ("one", "two"):
        for name, value in written[part].items():
            both = [state[f"{part}.{name}"] for state in own]
            assert torch.equal(value, truth.mean(both)), (part, name)


def test_the_last_file_s_folder_is_gone(tmp_path):
    script = """
    import shutil
    if dist.get_rank() == 0:
        os.makedirs("temporary")
        torch.save(model.module.state_dict(), "temporary/model.pth")
        shutil.rmtree("temporary")
    """
    start = WRAPPED.replace("if dist.get_rank() == 0", "if False")
    ended = launch(tmp_path, start, script)
    assert all(rank.code in (0, None) for rank in ended), ended
    assert (tmp_path / "lofi-average.pth").exists()


def test_a_file_with_other_names_is_matched_whole(tmp_path):
    """Some libraries rename a part of a model's tensors as they save it: never a mixture."""
    script = """
    state = model.module.state_dict()
    renamed = {("other." + name if name.startswith("0") else name): value
               for name, value in state.items()}
    if dist.get_rank() == 0:
        torch.save(renamed, "renamed.pth")
        torch.save({"class_weights": torch.ones(4)}, "weights.pth")
    """
    launch(tmp_path, WRAPPED.replace("if dist.get_rank() == 0", "if False"), script)
    own = [load(tmp_path / f"own{rank}.test") for rank in (0, 1)]
    written = load(tmp_path / "renamed.lofi.pth")
    for name, value in written.items():
        both = [state[name.removeprefix("other.")] for state in own]
        assert torch.equal(value, truth.mean(both)), name
    assert not (tmp_path / "weights.lofi.pth").exists()


def test_no_process_group(tmp_path):
    ended = launch(tmp_path, "x = 1")
    assert "made no process group" in ended[0].stderr and "made no" not in ended[1].stderr


def test_the_start_and_the_end_in_a_line_each(tmp_path):
    ended = launch(tmp_path, WRAPPED)
    lines = [line for line in ended[0].stderr.splitlines() if line.startswith("lofi: ")]
    assert lines[0].startswith("lofi: 2 nodes x 1 ranks, shared memory or gloo on CPU")
    assert lines[1].startswith("lofi: averaged nodes [0, 1]: 4 of 4 tensors")
    assert not [line for line in ended[1].stderr.splitlines() if line.startswith("lofi: ")]
