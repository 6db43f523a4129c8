# SPDX-License-Identifier: MIT
"""Copies of a wrapped model carry nothing of lofi's."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.rank_jobs import (
    equal,
    job,
    net,
    raised,
    run_nodes,
    train,
    weights,
    wrapped,
)
from harness.ranks import run_ranks
from torch import nn


def carries_nothing(module: nn.Module, bare: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return module.__dict__.keys() == bare.__dict__.keys() and not any(hooks)


def _copies() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 2)
        own = weights(model.module)
        twin = copy.deepcopy(model.module)
        bare = net()
        pickled = pickle.dumps(model)
        again = pickle.loads(pickled)
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        saved = torch.load(file, weights_only=False)
        modules = zip(model.module.modules(), bare.modules(), strict=True)
        unchanged = all(carries_nothing(mine, other) for mine, other in modules)
        train(again, 1, first=2)
        assert equal(weights(model.module), own)
        assert not equal(weights(again.module), own)
        copies = (weights(twin), weights(saved.module))
        lofi.finalize_average(model)
        assert equal(weights(twin), own)
        return own, copies, unchanged, b"lofi" in pickled


@pytest.mark.quick
def test_copies_of_a_wrapped_model_carry_nothing_of_lofis():
    for own, copies, unchanged, named in run_nodes(_copies):
        assert all(equal(own, other) for other in copies)
        assert unchanged
        assert not named


def _counts_alone() -> Any:
    from lofi.models.tracked import count_everywhere

    with job(timeout=1.0):
        if dist.get_rank() == 0:
            return raised(count_everywhere, 1, dist.group.WORLD)
    return None


def test_a_rank_that_does_not_say_how_many_copies_it_has():
    error, _ = run_ranks(_counts_alone, 2)
    assert error.type == "DistBackendError", error
    assert ": Timed out waiting: ranks [1] did not say within 1 s" in error.text
