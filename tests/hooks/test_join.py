# SPDX-License-Identifier: MIT
"""torch's join() with inputs that differ in number."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from harness.rank_jobs import (
    check_apart,
    job,
    run_nodes,
    train,
    weights,
    wrapped,
)
from torch.distributed.algorithms.join import Join, Joinable, JoinHook

NODES = 2


class _CounterHook(JoinHook):
    def __init__(self, counter: "_Counter"):
        self.counter = counter

    def main_hook(self) -> None:
        dist.all_reduce(torch.zeros(1))

    def post_hook(self, is_last_joiner: bool) -> None:
        self.counter.joined_last = is_last_joiner


class _Counter(Joinable):
    """Of torch's tutorial on uneven inputs: counts the inputs of all ranks."""

    def __init__(self):
        super().__init__()
        self.count, self.joined_last = 0.0, False

    def __call__(self) -> None:
        Join.notify_join_context(self)
        one = torch.ones(1)
        dist.all_reduce(one)
        self.count += one.item()

    def join_hook(self, **kwargs: Any) -> JoinHook:
        return _CounterHook(self)

    @property
    def join_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def join_process_group(self) -> Any:
        return dist.group.WORLD


def _joins() -> Any:
    import lofi

    with job():
        model = wrapped()
        train(model, 1)
        counter = _Counter()
        inputs = 2 + 3 * dist.get_rank()
        with Join([counter, model]):
            for step in range(inputs):
                counter()
                train(model, 1, first=1 + step)
        return counter.count, counter.joined_last, weights(model), lofi.stats()["cross_bytes"]


@pytest.mark.quick
def test_join_with_inputs_that_differ_between_ranks_and_nodes():
    results = run_nodes(_joins)
    check_apart([own for _, _, own, _ in results])
    for rank, (count, last, _, crossed) in enumerate(results):
        steps = [2 + 3 * member for member in range(4)]
        # At each of its own steps a rank sees K times the ranks of its node that still go on.
        node = steps[rank // 2 * 2 : rank // 2 * 2 + 2]
        expected = sum(NODES * sum(step < other for other in node) for step in range(steps[rank]))
        assert count == expected
        assert last == (rank % 2 == 1)
        assert crossed["training"] == 0
