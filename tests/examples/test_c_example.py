# SPDX-License-Identifier: MIT
"""The C example against the installed library, over MPI: what it writes against numpy's truth."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from harness import truth

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "c"
RANKS = 4
PIXELS, CLASSES = 64, 10
EPOCHS, BATCH, RATE, HELD_OUT = 20, 16, 0.5, 4  # as in main.c
TIMEOUT = 120  # seconds; one is usual
BUILD_TIMEOUT = 300

MISSING = [name for name in ("cmake", "mpicc", "mpirun") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"not installed: {', '.join(MISSING)} (Debian: cmake openmpi-bin libopenmpi-dev)",
    ),
]


@dataclass
class Built:
    program: Path
    csv: Path


def call(*command: str | Path) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_TIMEOUT
    )
    assert done.returncode == 0, done.stdout


def build_example(prefix: Path, build: Path, compiler: str) -> Path:
    call(
        *("cmake", "-S", EXAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}"),
        *(f"-DCMAKE_C_COMPILER={compiler}", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"),
    )
    call("cmake", "--build", build)
    return build / "softmax"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory) -> Path:
    """Where liblofi is installed."""
    folder = tmp_path_factory.mktemp("liblofi")
    call("cmake", "-S", ROOT, "-B", folder / "build", "-DLOFI_TESTS=OFF")
    call("cmake", "--build", folder / "build", "--parallel", "2")
    call("cmake", "--install", folder / "build", "--prefix", folder / "prefix")
    return folder / "prefix"


@pytest.fixture(scope="module")
def built(prefix, tmp_path_factory) -> Built:
    datasets = pytest.importorskip("sklearn.datasets")
    folder = tmp_path_factory.mktemp("softmax")
    csv = folder / "digits.csv"
    call(sys.executable, EXAMPLE / "write_digits.py", csv)
    table = np.loadtxt(csv, delimiter=",")
    data = datasets.load_digits()
    # All of the pictures, in another order.
    assert sorted(map(tuple, table)) == sorted(
        map(tuple, np.column_stack([data.data, data.target]))
    )
    return Built(build_example(prefix, folder / "build", "cc"), csv)


def has_gpu() -> bool:
    """Whether CUDA's driver is there and sees a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def mpirun(node_size: int | None, *args: str | Path) -> subprocess.CompletedProcess:
    foreign = ("LOFI_", "SLURM_", "LOCAL_WORLD_SIZE")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # Open MPI: CI is root, and has fewer cores than there are ranks (its releases 4 and 5). Other
    # MPIs ignore these.
    env |= {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    if node_size is not None:
        env["LOFI_NODE_SIZE"] = str(node_size)
    return subprocess.run(
        ["mpirun", *args],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )


def train(built: Built, folder: Path, ranks: int, node_size: int | None, *options: str) -> str:
    folder.mkdir()
    done = mpirun(node_size, "-n", str(ranks), built.program, built.csv, folder, *map(str, options))
    assert done.returncode == 0, done.stdout
    return done.stdout


def weights(folder: Path, kind: str, ranks=range(RANKS)) -> np.ndarray:
    found = np.stack([np.fromfile(folder / f"rank{rank}.{kind}.f32", np.float32) for rank in ranks])
    assert found.shape == (len(ranks), CLASSES * (PIXELS + 1))
    return found


def reference(csv: Path, start: np.ndarray, ranks: range) -> tuple[np.ndarray, float]:
    """The weights of the node that these ranks are, and their accuracy, computed in float64."""
    table = np.loadtxt(csv, delimiter=",")
    inputs = np.column_stack([table[:, :PIXELS] / 16, np.ones(len(table))])
    wanted = np.eye(CLASSES)[table[:, PIXELS].astype(int)]
    held_out = len(table) // HELD_OUT
    train = len(table) - held_out
    count = train // RANKS
    parts = [slice(rank, rank + count * RANKS, RANKS) for rank in ranks]
    model = start.astype(np.float64).reshape(CLASSES, PIXELS + 1)
    for _ in range(EPOCHS):
        for first in range(0, count - BATCH + 1, BATCH):
            rows = slice(first, first + BATCH)
            x = np.concatenate([inputs[part][rows] for part in parts])
            y = np.concatenate([wanted[part][rows] for part in parts])
            exps = np.exp(x @ model.T)
            slope = exps / exps.sum(axis=1, keepdims=True) - y
            model = model - RATE * slope.T @ x / len(x)
    likely = (inputs[train:] @ model.T).argmax(axis=1)
    return model.ravel(), float((likely == wanted[train:].argmax(axis=1)).mean())


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_it_builds_without_a_warning(prefix, tmp_path, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    build_example(prefix, tmp_path / "build", compiler)


@pytest.mark.parametrize("node_size", [1, 2, 4])
def test_nodes_train_apart_and_end_with_their_mean(built, tmp_path, node_size):
    out = tmp_path / "out"
    log = train(built, out, RANKS, node_size)
    nodes = RANKS // node_size
    start, own, average = (weights(out, kind) for kind in ("start", "own", "average"))

    assert (start == start[0]).all()
    by_node = own.reshape(nodes, node_size, -1)
    assert (by_node == by_node[:, :1]).all()  # the ranks of a node hold the same
    of_nodes = by_node[:, 0]
    assert len(np.unique(of_nodes, axis=0)) == nodes  # and each node its own
    for node in range(nodes):
        ranks = range(node * node_size, (node + 1) * node_size)
        want, accuracy = reference(built.csv, start[0], ranks)
        assert np.abs(want - start[0]).max() > 1  # it has learnt
        np.testing.assert_allclose(of_nodes[node], want, rtol=0, atol=1e-4)
        printed = re.search(rf"^node {node} .* ([\d.]+) %$", log, re.MULTILINE)
        assert printed is not None, log
        assert float(printed[1]) == pytest.approx(100 * accuracy, abs=0.25)  # one of 449: 0.22

    assert (average == average[0]).all()
    mean = truth.formula(list(of_nodes.astype(np.float64))).astype(np.float32)
    np.testing.assert_array_equal(average[0], mean)
    # Each element crosses 2 (K-1)/K times for each node; the last pieces are padded.
    sent = re.search(r"(\d+) bytes while training, (\d+) for the average", log)
    assert sent is not None, log
    assert int(sent[1]) == 0
    least = 2 * (nodes - 1) * mean.nbytes
    assert least <= int(sent[2]) <= least + 2 * (nodes - 1) * 4 * RANKS
    assert f"{nodes} node" in log and "all ranks hold the same bits" in log


def test_a_node_trains_as_it_does_alone(built, tmp_path):
    train(built, tmp_path / "both", RANKS, 2)
    for node in range(2):
        ranks = range(2 * node, 2 * node + 2)
        alone = tmp_path / f"node{node}"
        train(built, alone, 2, 2, "--ranks-total", RANKS, "--first-rank", ranks[0])
        for kind in ("start", "own"):
            np.testing.assert_array_equal(
                weights(alone, kind, ranks), weights(tmp_path / "both", kind, ranks)
            )
        # The average of one node is that node.
        np.testing.assert_array_equal(
            weights(alone, "average", ranks), weights(alone, "own", ranks)
        )


def test_the_transports_give_the_same_bits(built, tmp_path):
    logs = {
        name: train(built, tmp_path / name, RANKS, 2, "--transport", name)
        for name in ("shm", "host")
    }
    for name, log in logs.items():
        assert len(re.findall(rf"^node \d +{name} ", log, re.MULTILINE)) == 2, log
    for kind in ("own", "average"):
        np.testing.assert_array_equal(
            weights(tmp_path / "shm", kind), weights(tmp_path / "host", kind)
        )


def test_a_node_without_shared_memory_goes_over_mpi(built, tmp_path):
    """Rank 1 is in an IPC namespace of its own, as in a container of its own."""
    apart = ("unshare", "--ipc")
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"]).returncode != 0:
        pytest.skip("needs the right to make an IPC namespace")
    train(built, tmp_path / "shm", RANKS, 2)
    out = tmp_path / "out"
    out.mkdir()
    softmax = (built.program, built.csv, out)
    rank_1 = ("-n", "1", *apart, *softmax)
    done = mpirun(2, "-n", "1", *softmax, ":", *rank_1, ":", "-n", "2", *softmax)
    assert done.returncode == 0, done.stdout
    assert "node 0 shares no memory and goes over MPI: ranks 0 and 1" in done.stdout
    assert re.search(r"^node 0 +host ", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^node 1 +shm ", done.stdout, re.MULTILINE), done.stdout
    np.testing.assert_array_equal(weights(out, "average"), weights(tmp_path / "shm", "average"))


def test_without_a_node_size_the_host_is_the_node(built, tmp_path):
    log = train(built, tmp_path / "out", 2, None)
    assert "1 node of 2 ranks (by host names)" in log


GOOD_LINE = ",".join(["7"] * PIXELS + ["3"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (GOOD_LINE + "\n" + GOOD_LINE[2:] + "\n", "line 2, column 64"),
        (GOOD_LINE + ",1\n", "line 1, column 65"),
        (GOOD_LINE.replace("7", "17", 1) + "\n", "line 1, column 1:"),
        (GOOD_LINE.replace("7,7", "7,x", 1) + "\n", "line 1, column 2:"),
        (GOOD_LINE.replace("7,7", "7, -7", 1) + "\n", "line 1, column 2:"),
        (GOOD_LINE + "\n" + GOOD_LINE[:-1] + "10\n", "line 2, column 65"),
        (GOOD_LINE + "\n", "too few for 2 ranks"),
    ],
)
def test_a_bad_file_is_everyones_error(built, tmp_path, text, message):
    """One rank has the bad file, and none waits for it."""
    bad = tmp_path / "bad.csv"
    bad.write_text(text)
    good = ("-n", "1", built.program, built.csv)
    done = mpirun(2, *good, ":", "-n", "1", built.program, bad)
    assert done.returncode != 0
    assert re.search(rf"rank 1: {re.escape(str(bad))}.*{message}", done.stdout), done.stdout


def test_wrong_arguments_are_refused(built, tmp_path):
    csv, missing = built.csv, tmp_path / "missing"
    cases = [
        ([], "usage"),
        ([csv, "--transport", "smoke"], "usage"),
        ([csv, "--first-rank"], "usage"),
        ([csv, "--first-rank", "1"], "more than --ranks-total 2"),
        ([missing], f"can't open {missing}"),
        ([csv, missing], "can't write"),
    ]
    for args, message in cases:
        done = mpirun(2, "-n", "2", built.program, *args)
        assert done.returncode != 0
        assert message in done.stdout


@pytest.fixture(scope="module")
def train_cuda(built) -> Path:
    program = built.program.with_name("train_cuda")
    if not program.exists():
        assert shutil.which("nvcc") is None  # where it is, it builds
        pytest.skip("nvcc is not installed")
    return program


def test_on_gpus_it_trains_and_averages(built, train_cuda):
    if not has_gpu():
        pytest.skip("needs a GPU")
    done = mpirun(1, "-n", "1", train_cuda, built.csv)
    assert done.returncode == 0, done.stdout
    assert "1 nodes of 1 GPUs" in done.stdout
    scores = re.findall(
        r"^(?:node 0|average) +loss (\S+)  accuracy (\S+) %$", done.stdout, re.MULTILINE
    )
    assert len(scores) == 2 and scores[0] == scores[1], done.stdout  # of one node
    assert float(scores[0][1]) > 95


def test_without_a_gpu_all_ranks_say_so(built, train_cuda):
    if has_gpu():
        pytest.skip("there is one")
    done = mpirun(1, "-n", "2", train_cuda, built.csv)
    assert done.returncode != 0
    assert re.search(
        r"train_cuda: finding the nodes: rank 0: there is no GPU to train on: CUDA says: .",
        done.stdout,
    ), done.stdout
