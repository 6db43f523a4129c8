# SPDX-License-Identifier: MIT
"""lofi.averaged(): the average for a while, and the node's own weights back, bit for bit."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from harness import truth
from harness.ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

NODES = {"LOFI_NODE_SIZE": "2"}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(100 * dist.get_rank() + step)
        loss = model(torch.randn(5, 4, generator=generator)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def setup():
    dist.init_process_group("lofi")
    model = DistributedDataParallel(make_model())
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def values(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def of_nodes(model):
    """The state of each node's first rank."""
    import lofi

    with lofi.scope("world"):
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, values(model))
    return gathered[0::2]


def _a_block(keep):
    import lofi

    model, optimizer = setup()
    train(model, optimizer, 3)
    states, own = of_nodes(model), values(model)
    assert not equal(states[0], states[1])
    with lofi.averaged(model, keep=keep) as average:
        inside = values(model)
        phase, world_sum = lofi.phase(), torch.ones(1)
        dist.all_reduce(world_sum)  # real: over all ranks
    mean = truth.mean_of_states(*states)
    right = all(torch.equal(inside[name], mean[name]) for name in inside)
    return right, equal(values(model), own), phase, world_sum.item(), average, lofi.phase()


@pytest.mark.quick
@pytest.mark.parametrize("keep", ["host", "device"])
def test_the_average_is_in_and_own_weights_come_back(keep):
    for right, back, phase, total, average, after in run_ranks(_a_block, 4, keep, env=NODES):
        assert right and back and phase == "evaluate" and total == 4 and after == "train"
        assert average.nodes == [0, 1] and average.bytes_sent > 0


def _trajectory(with_blocks):
    import lofi

    model, optimizer = setup()
    for part in range(3):
        train(model, optimizer, 2, first=2 * part)
        if with_blocks:
            with lofi.averaged(model), torch.no_grad():
                model.eval()
                model(torch.ones(3, 4))
            model.train()
    return values(model), [state for state in optimizer.state.values()]


def test_training_is_the_same_to_the_bit():
    plain, blocks = (run_ranks(_trajectory, 4, how, env=NODES) for how in (False, True))
    for (weights, states), (other_weights, other_states) in zip(plain, blocks, strict=True):
        assert equal(weights, other_weights)
        for a, b in zip(states, other_states, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)


def _an_exception():
    import lofi

    model, optimizer = setup()
    train(model, optimizer, 2)
    own = values(model)
    with pytest.raises(KeyError), lofi.averaged(model):
        raise KeyError("from the script")
    return equal(values(model), own), lofi.phase()


def test_an_exception_brings_own_weights_back():
    assert run_ranks(_an_exception, 4, env=NODES) == [(True, "train")] * 4


def _again():
    import lofi

    model, optimizer = setup()
    train(model, optimizer, 2)
    sent, seen = [], []
    for _ in range(2):
        with lofi.averaged(model) as average:
            seen.append(values(model))
        sent.append(average.bytes_sent)
    final = lofi.finalize_average(model)
    seen.append(values(model))
    lofi.start()
    with torch.no_grad():
        model.module[0].weight += dist.get_rank() // 2  # not by a step
    with lofi.averaged(model) as average:
        pass
    return sent, final.bytes_sent, [equal(seen[0], other) for other in seen[1:]], average


def test_nothing_is_sent_twice():
    for sent, final, same, after_a_change in run_ranks(_again, 4, env=NODES):
        assert sent[0] > 400 and sent[1] < 100 and final < 100 and same == [True, True]
        assert after_a_change.averaged > 0


def _nested():
    import lofi

    model, optimizer = setup()
    train(model, optimizer, 2)
    own = values(model)
    with lofi.averaged(model):
        outer = values(model)
        with lofi.averaged(model.module):
            inner = values(model)
        still = values(model)
        with pytest.raises(RuntimeError, match="within lofi"):
            lofi.finalize_average(model)
    return equal(outer, inner) and equal(outer, still), equal(values(model), own)


def test_nested_blocks():
    assert run_ranks(_nested, 4, env=NODES) == [(True, True)] * 4


def _load(how):
    import lofi

    model, optimizer = setup()
    initial = values(model.module)
    train(model, optimizer, 2)
    own = values(model.module)
    with lofi.averaged(model):
        average = values(model.module)
        if how == "load_state_dict":
            model.module.load_state_dict(initial)
        elif how == "the same values":
            model.module.load_state_dict(average)
        elif how == "below autograd":
            for name, tensor in model.module.named_parameters():
                tensor.data.copy_(initial[name])
        elif how == "a part":
            model.module[3].load_state_dict(
                {"weight": initial["3.weight"], "bias": initial["3.bias"]}
            )
        else:  # a forward in training mode moves BatchNorm's buffers: no load
            model.train()
            with torch.no_grad():
                model(torch.randn(6, 4))
    return own, initial, average, values(model.module)


def test_a_load_within_the_block_stands():
    for _, initial, _, after in run_ranks(_load, 4, "load_state_dict", env=NODES):
        assert equal(after, initial)
    for _, _, average, after in run_ranks(_load, 4, "the same values", env=NODES):
        assert equal(after, average)
    for _, initial, _, after in run_ranks(_load, 4, "below autograd", env=NODES):
        assert all(torch.equal(after[n], initial[n]) for n in after if n[-4:] in ("ight", "bias"))
    for own, initial, _, after in run_ranks(_load, 4, "a part", env=NODES):
        assert torch.equal(after["3.weight"], initial["3.weight"])
        assert torch.equal(after["0.weight"], own["0.weight"])
    for own, _, _, after in run_ranks(_load, 4, "buffers", env=NODES):
        assert equal(after, own)


def _moved():
    import lofi

    model, optimizer = setup()
    train(model, optimizer, 2)
    own = values(model.module)
    with lofi.averaged(model):
        model.module.double()  # as .cpu() and .cuda() around a save: other storage
        model.module.float()
    return equal(values(model.module), own)


def test_a_model_that_is_moved_within_the_block():
    assert run_ranks(_moved, 4, env=NODES) == [True] * 4


def _fails_in_the_middle():
    import lofi
    from lofi.average import swaps

    model, optimizer = setup()
    train(model, optimizer, 2)
    own, original, calls = values(model), swaps._change_places, []

    def fails(change):
        calls.append(change)
        if len(calls) == 3:
            raise MemoryError
        original(change)

    swaps._change_places = fails
    with pytest.raises(MemoryError), lofi.averaged(model):
        pass
    return equal(values(model), own)


def test_a_swap_that_fails_half_way_leaves_own_weights():
    assert run_ranks(_fails_in_the_middle, 4, env=NODES) == [True] * 4


def _other_targets():
    import lofi

    model, optimizer = setup()
    train(model, optimizer, 2)
    own, right = values(model), []
    average = truth.mean_of_states(*of_nodes(model))
    for _ in range(3):  # new objects each time, at addresses that may be the same
        for target in (model.state_dict(), list(model.parameters())):
            with lofi.averaged(target):
                right.append(equal(values(model), average) or len(target) != len(own))
            right.append(equal(values(model), own))
    return all(right), len(lofi.average.swaps._swaps())


def test_state_dicts_and_lists():
    assert run_ranks(_other_targets, 4, env=NODES) == [(True, 0)] * 4


def _in_inference_mode():
    import lofi

    model, optimizer = setup()
    train(model, optimizer, 2)
    own = values(model)
    with torch.inference_mode(), lofi.averaged(model):
        inside = values(model)
        model.eval()
        model(torch.ones(2, 4))
    back = equal(values(model), own)
    model.train()
    train(model, optimizer, 1)  # no tensor of inference mode is left in the graph
    twins = [copy.deepcopy(model.module), pickle.loads(pickle.dumps(model.module))]
    return back, not equal(inside, own), all(equal(values(t), values(model.module)) for t in twins)


def test_inference_mode_deepcopy_and_pickle():
    assert run_ranks(_in_inference_mode, 4, env=NODES) == [(True, True, True)] * 4


def _a_graph_across():
    import lofi

    model, optimizer = setup()
    train(model, optimizer, 1)
    inputs = torch.ones(3, 4) * (1 + dist.get_rank())
    gradients = []
    for with_block in (False, True):
        optimizer.zero_grad()
        model.eval()  # so that both forwards see the same BatchNorm
        loss = model(inputs).square().sum()
        if with_block:
            with lofi.averaged(model):
                pass
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    return all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_graph_from_before_the_block_stays_right():
    assert run_ranks(_a_graph_across, 4, env=NODES) == [True] * 4


def _one_node():
    import lofi

    model, optimizer = setup()
    train(model, optimizer, 1)
    own = values(model)
    with lofi.averaged(model) as average:
        inside = values(model)
    return average.nodes, average.bytes_sent, equal(inside, own), equal(values(model), own)


def test_one_node():
    for result in run_ranks(_one_node, 2, env=NODES):
        assert result == ([0], 0, True, True)


def _bad_use():
    import lofi

    model, _ = setup()
    messages = []
    for arguments in ({"keep": "disk"}, {"timeout": -1}, {"weight": 0.0}):
        with pytest.raises(ValueError) as error, lofi.averaged(model, **arguments):
            pass
        messages.append(str(error.value))
    return messages, lofi.phase()


def test_bad_use_is_told():
    for (keep, timeout, weight), phase in run_ranks(_bad_use, 4, env=NODES):
        assert "disk" in keep and "-1" in timeout and "weight" in weight and phase == "setup"


def _a_node_that_does_not_come():
    import lofi

    model, optimizer = setup()
    train(model, optimizer, 2)
    own, told = values(model), ""
    if lofi.stats()["node"] == 0:
        with pytest.raises(dist.DistBackendError) as error, lofi.averaged(model, timeout=0.5):
            pass
        told = str(error.value)
    with lofi.scope("world"):
        dist.barrier()
    return told, equal(values(model), own), lofi.phase()


def test_a_node_that_does_not_come():
    for rank, result in enumerate(run_ranks(_a_node_that_does_not_come, 4, env=NODES)):
        told, same, phase = result
        assert same and phase == "train" and (rank >= 2 or "node(s) [1] did not come" in told)
