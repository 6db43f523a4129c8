# SPDX-License-Identifier: MIT
"""Copies of a wrapped model carry nothing of lofi's."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from harness.rank_jobs import (
    equal,
    job,
    net,
    run_nodes,
    train,
    weights,
    wrapped,
)
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
