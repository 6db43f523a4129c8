# SPDX-License-Identifier: MIT
"""lofi across nodes with real links: what the interfaces count, and what a cut link does."""

import json
import time

import pytest
from harness.cluster import WORKERS
from harness.cluster.netns import Cluster, requires_root_and_netns

MISSING = requires_root_and_netns()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

# Keep-alives, acknowledgements that were under way, store keys of a node that is ahead.
ALLOWANCE_BYTES = 10_000
STEPS = 20
MODEL_BYTES = 4 * (256 * 512 + 512 + 2 * 512 + 512 * 256 + 256)


def crossed(marks, begin, end):
    """Bytes that each node's interface moved between two marks, by any of its ranks' clocks."""
    return [
        sum(marks[end][node][key] - marks[begin][node][key] for key in ("tx_bytes", "rx_bytes"))
        for node in marks[begin]
    ]


def lines(run):
    return [json.loads(result.stdout.strip().splitlines()[-1]) for result in run.results]


@pytest.fixture(scope="module")
def cluster():
    with Cluster(nodes=2) as made:
        yield made


def test_nothing_crosses_while_training(cluster):
    job = cluster.start(WORKERS / "train.py", ["lofi", STEPS], nproc=2)
    run = job.wait(90)
    moved = crossed(job.marks(), "training begins", "training ends")
    assert all(count < ALLOWANCE_BYTES for count in moved), moved
    for result in lines(run):
        assert result["stats"]["cross_bytes"]["training"] == 0
        assert result["stats"]["collectives"]["world"]["training"] == 0
        assert result["stats"]["collectives"]["node"]["training"] > 4 * STEPS
        assert result["nodes"] == [0, 1] and result["changed"]


def test_the_counters_see_gloo(cluster):
    """The same script on gloo: the test above can fail."""
    job = cluster.start(WORKERS / "train.py", ["gloo", 2], nproc=2)
    job.wait(90)
    moved = crossed(job.marks(), "training begins", "training ends")
    assert all(count > 2 * MODEL_BYTES for count in moved), moved


def test_the_average_sends_what_it_must(cluster):
    job = cluster.start(WORKERS / "average.py", [8, "float32", "average"], nproc=2)
    results = lines(job.wait(90))
    size = results[0]["bytes"]  # 2 (K-1)/K = 1 for two nodes
    marks = job.marks()
    for node in (0, 1):
        payload = results[2 * node]["bytes_sent"]
        wire = marks["average ends"][node]["tx_bytes"] - marks["average begins"][node]["tx_bytes"]
        assert size <= payload <= 1.02 * size
        assert payload <= wire <= 1.08 * size
    assert len({result["sha256"] for result in results}) == 1


def test_a_cut_link_leaves_every_node_its_own_weights(cluster):
    cluster.limit(100)
    try:
        # 14 million parameters take about 4.7 s on this link; a transfer fails after 6 s.
        job = cluster.start(WORKERS / "average.py", [14, "float32", "average", 6], nproc=2)
        job.wait_for_mark("average begins", 60)
        begin = job.marks()["average begins"][0]["tx_bytes"]
        while cluster.counters()[0]["tx_bytes"] - begin < 10e6:
            time.sleep(0.05)
        cluster.cut(0)
        results = lines(job.wait(90, check=False))
    finally:
        cluster.restore(0)
        cluster.limit(None)
    for result in results:
        assert "error" in result, result
        assert result["unchanged"]
    assert len({result["sha256"] for result in results}) == 2
