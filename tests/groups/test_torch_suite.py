# SPDX-License-Identifier: MIT
"""PyTorch's tests of what its profiler sees of a process group.

Its tests of profiles of DDP want GPUs; test_profile.py has such ones of DDP on the CPU.
"""

import pytest
from harness.ranks import run_ranks
from harness.torch_suite import run_tests

pytest.importorskip("expecttest")  # PyTorch's tests import it

# These look for the event of each call: its count, its shapes, that it is asynchronous.
SEEN = """
    test_all_reduce_sum test_all_reduce_sum_async test_all_reduce_sum_complex
    test_all_reduce_product test_all_reduce_min test_all_reduce_max test_all_reduce_group_sum
    test_all_reduce_full_group_sum
    test_all_reduce_coalesced_sum test_all_reduce_coalesced_group_sum
    test_all_reduce_coalesced_full_group_max
    test_broadcast test_broadcast_group test_broadcast_full_group
    test_reduce_sum test_reduce_max test_reduce_group_product test_reduce_full_group_sum
    test_reduce_sum_twice
    test_all_gather test_all_gather_complex test_all_gather_group
    test_all_gather_coalesced_simple test_all_gather_coalesced_full_group
    test_gather test_gather_group test_gather_full_group test_scatter test_scatter_full_group
    test_all_to_all_single_equal_split test_all_to_all_single_unequal_split
    test_barrier test_barrier_group test_barrier_full_group
    test_send_recv_autograd_profiler test_send_recv_torch_profiler
    test_send_recv_any_source_autograd_profiler test_send_recv_any_source_torch_profiler
    test_send_recv_with_tag_autograd_profiler test_send_recv_with_tag_torch_profiler
    test_isend_autograd_profiler test_isend_torch_profiler
"""


@pytest.mark.parametrize(
    "ranks, environment",
    [(2, {}), pytest.param(4, {"LOFI_NODE_SIZE": "2"}, marks=pytest.mark.slow)],
)
def test_the_profiler_of_pytorchs_tests(ranks, environment):
    outcomes = run_ranks(run_tests, ranks, SEEN.split(), env=environment, timeout=240)
    for outcome in outcomes:
        fine = ("passed", "skipped", "not in this torch")
        failed = {name: text for name, text in outcome.items() if text not in fine}
        assert not failed, "\n".join(f"{name}: {text}" for name, text in failed.items())
        skipped = [name for name, text in outcome.items() if text == "skipped"]
        assert all("_group" in name and ranks == 2 for name in skipped)
