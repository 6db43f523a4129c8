# SPDX-License-Identifier: MIT
"""Libraries that spread a model or its optimizer over nodes: refused when they are set up."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from harness.rank_jobs import job, raised, run_nodes

STAND_IN = """
class {owner}:
    def __init__(self, init_optimizer, param_names, timers=None, dp_process_group=None):
        self.group = dp_process_group
"""
PLACES = {
    "deepspeed.runtime.zero.stage_1_and_2": "DeepSpeedZeroOptimizer",
    "deepspeed.runtime.zero.stage3": "DeepSpeedZeroOptimizer_Stage3",
    "deepspeed.runtime.bf16_optimizer": "BF16_Optimizer",
}


def _sets_up(folder: str, name: str, comes_first: bool) -> Any:
    sys.path.insert(0, folder)
    if comes_first:
        __import__(name)
    with job():
        inside = [dist.new_group([0, 1]), dist.new_group([2, 3])][dist.get_rank() // 2]
        owner = getattr(__import__(name, fromlist=["x"]), PLACES[name])
        assert owner([], [], dp_process_group=inside).group is inside
        return (
            raised(lambda: owner([], [], None, dist.group.WORLD)),
            raised(lambda: owner([], [])),
        )


@pytest.mark.parametrize("comes_first", [True, False])
@pytest.mark.parametrize("name", PLACES)
def test_deepspeeds_optimizers_over_nodes(name, comes_first, tmp_path):
    path = Path(tmp_path, *name.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True)
    for folder in path.relative_to(tmp_path).parents[:-1]:
        (tmp_path / folder / "__init__.py").touch()
    path.write_text(STAND_IN.format(owner=PLACES[name]))
    for errors in run_nodes(_sets_up, str(tmp_path), name, comes_first):
        for error in errors:
            assert error.type == "RuntimeError"
            assert f"DeepSpeed's {PLACES[name]} would spread a model over 2 nodes" in error.text
            assert '"stage": 0' in error.text
