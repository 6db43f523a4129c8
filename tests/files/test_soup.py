# SPDX-License-Identifier: MIT
"""`lofi soup` with commands that score, against float64 in numpy and a greedy search of its own."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from harness import checkpoints as ck
from harness.checkpoints import Tensor, lofi, read, write

pytestmark = pytest.mark.skipif(
    not Path(ck.LOFI).exists(), reason="the program lofi is not built: bash ci/c.sh gcc"
)

# Minus the square of the distance of all floats to 1, computed from the file that it is given.
SCORE = """
import json, struct, sys
import numpy as np
content = open(sys.argv[1], "rb").read()
(length,) = struct.unpack("<Q", content[:8])
score = 0.0
for name, entry in json.loads(content[8 : 8 + length]).items():
    if name == "__metadata__":
        continue
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    if entry["dtype"] == "BF16":
        bits = np.frombuffer(content[begin:end], dtype=np.uint16)
        data = (bits.astype(np.uint32) << 16).view(np.float32)
    else:
        data = np.frombuffer(content[begin:end], dtype=np.float32)
    score -= float(((data.astype(np.float64) - 1) ** 2).sum())
print("scored", sys.argv[1])
print("score =", score)
"""


def distance(data):
    return -sum(float(((x - 1) ** 2).sum()) for x in data.values())


@pytest.fixture
def score(tmp_path):
    (tmp_path / "score.py").write_text(SCORE)
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(tmp_path / 'score.py'))} {{}}"


def near_one(seed, kind="F32", spread=0.5):
    rng = np.random.default_rng(seed)
    return {n: Tensor.of(kind, 1 + spread * rng.standard_normal(9)) for n in ("a", "b.weight")}


def write_runs(folder, runs):
    paths = []
    for number, tensors in enumerate(runs):
        paths.append(folder / f"run{number}.safetensors")
        write(paths[-1], tensors)
    return paths


def mean_of(runs):
    """What a mean's file holds: rounded once, from the original inputs."""
    return {
        n: Tensor.of(t.kind, ck.mean([run[n].data for run in runs])) for n, t in runs[0].items()
    }


def numbers(tensors):
    return {name: tensor.data for name, tensor in tensors.items()}


def greedy(runs, score=distance):
    """Recipe 1: (input, score, kept) of each step, the kept inputs in order, and the score."""
    alone = [score(numbers(run)) for run in runs]
    order = sorted(range(len(runs)), key=lambda i: -alone[i])
    kept, best, steps = [order[0]], alone[order[0]], [(order[0], alone[order[0]], True)]
    for i in order[1:]:
        value = score(numbers(mean_of([runs[k] for k in [*kept, i]])))
        steps.append((i, value, value >= best))
        if value >= best:
            kept, best = [*kept, i], value
    return alone, steps, kept, best


def same(found, wanted):
    return found.keys() == wanted.keys() and all(found[n].same(t) for n, t in wanted.items())


def names_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("kind", ["F32", "BF16"])
@pytest.mark.parametrize("seed", [0, 100, 200])
def test_greedy(tmp_path, score, kind, seed):
    runs = [near_one(seed + i, kind, 0.3 + 0.1 * i) for i in (4, 1, 0, 3, 2, 5)]
    paths, out = write_runs(tmp_path, runs), tmp_path / "soup.safetensors"
    alone, steps, kept, best = greedy(runs)
    assert 1 < len(kept) < len(runs)  # else it proves little
    before = names_in(tmp_path)
    table = tmp_path / "steps.csv"
    done = lofi("soup", *paths, "-o", out, "--score", score, "--json", "--csv", table)
    assert same(read(out), mean_of([runs[i] for i in kept]))
    assert sorted([*before, "soup.safetensors", "steps.csv"]) == names_in(tmp_path)

    told = json.loads(done.stdout)
    assert told["score"] == best and told["inputs"] == [str(paths[i]) for i in kept]
    wanted = [
        {"trial": "alone", "checkpoint": str(p), "score": s}
        for p, s in zip(paths, alone, strict=True)
    ]
    wanted += [
        {"trial": "add", "checkpoint": str(paths[i]), "score": s, "kept": k} for i, s, k in steps
    ]
    assert told["steps"] == wanted
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["trial"], r["checkpoint"], float(r["score"]), r["kept"]) for r in rows] == [
        (w["trial"], w["checkpoint"], w["score"], str(int(w["kept"])) if "kept" in w else "")
        for w in wanted
    ]
    metadata = ck.header_of(out)["__metadata__"]
    assert json.loads(metadata["lofi.inputs"]) == [str(paths[i]) for i in kept]
    assert json.loads(metadata["lofi.scores"]) == [alone[i] for i in kept]
    assert json.loads(metadata["lofi.score"]) == best


@pytest.mark.quick
def test_table(tmp_path, score):
    runs = [near_one(i) for i in range(3)]
    paths, out = write_runs(tmp_path, runs), tmp_path / "soup.safetensors"
    alone, steps, kept, best = greedy(runs)
    lines = lofi("soup", *paths, "-o", out, "--score", score).stdout.splitlines()
    assert lines[0].split() == ["score", "checkpoint"]
    rows = [line.split() for line in lines[1:-1]]
    wanted = [[f"{s:.6g}", str(p)] for s, p in zip(alone, paths, strict=True)]
    for number, (i, s, is_kept) in enumerate(steps):
        plus = ["+"] if number > 0 else []
        wanted.append([f"{s:.6g}", "kept" if is_kept else "no", *plus, str(paths[i])])
    assert rows == wanted
    assert lines[-1] == f"{out}: the mean of {len(kept)} of 3 checkpoints, score {best:.6g}"
    assert lofi("soup", *paths, "-fqo", out, "--score", score).stdout == ""


def test_lower_is_better(tmp_path, score):
    runs = [near_one(i) for i in range(4)]
    paths, out = write_runs(tmp_path, runs), tmp_path / "soup.safetensors"
    _, _, kept, best = greedy(runs, lambda data: -distance(data))
    done = lofi("soup", *paths, "-o", out, "--score", score, "--lower", "--json")
    told = json.loads(done.stdout)
    # The score is minus the distance: the lower, the farther.
    assert told["score"] == -best and told["inputs"] == [str(paths[i]) for i in kept]


def test_equal_scores_keep_all_in_order(tmp_path):
    runs = [near_one(i) for i in range(4)]
    paths, out = write_runs(tmp_path, runs), tmp_path / "soup.safetensors"
    lofi("soup", *paths, "-o", out, "--score", "echo {} 1")
    assert same(read(out), mean_of(runs))


def test_one_checkpoint(tmp_path, score):
    (path,) = write_runs(tmp_path, [near_one(0)])
    lofi("soup", path, "-o", tmp_path / "out.safetensors", "--score", score)
    assert same(read(tmp_path / "out.safetensors"), near_one(0))


def test_folders(tmp_path):
    runs = [near_one(i) for i in range(3)]
    for number, tensors in enumerate(runs):
        ck.write_shards(tmp_path / f"run{number}", [{n: t} for n, t in tensors.items()])
        (tmp_path / f"run{number}" / "config.json").write_text(json.dumps({"run": number}))
    # The mean is there as a folder, with a config; run 2 is the best. Nothing that the command
    # leaves there is in the output.
    count = (
        'f() { test -f "$1/config.json" && echo x > "$1/seen"; case $1 in *run2) echo 5;; '
        '*run*) echo 1;; *) ls "$1" >> list; echo 5;; esac; }; f {}'
    )
    before = names_in(tmp_path)
    folders = [f"run{i}" for i in range(3)]
    done = lofi("soup", *folders, "-o", "soup", "--score", count, check=False, cwd=tmp_path)
    assert "--force-config" in done.stderr and names_in(tmp_path) == before
    lofi("soup", *folders, "-o", "soup", "--force-config", "--score", count, cwd=tmp_path)
    assert same(read(tmp_path / "soup"), mean_of([runs[i] for i in (2, 0, 1)]))
    assert json.loads((tmp_path / "soup" / "config.json").read_text()) == {"run": 2}
    added = set(names_in(tmp_path)) - set(before)
    assert {n for n in added if not n.startswith("soup")} == {
        "list",
        *(f"run{i}/seen" for i in range(3)),
    }
    listed = (tmp_path / "list").read_text().split()
    assert listed.count("model.safetensors.index.json") == 2 and listed.count("config.json") == 2


@pytest.mark.parametrize(
    ("given", "alphas"),
    [
        ("0,0.25,0.5,0.75,1", [0, 0.25, 0.5, 0.75, 1]),
        ("0:1:0.1", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("1:-0.3:-0.1", [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, -0.1, -0.2, -0.3]),
        ("0.5", [0.5]),
        ("0.3:1:0.5", [0.3, 0.8]),
    ],
)
def test_alphas(tmp_path, score, given, alphas):
    base, tuned = near_one(0), near_one(1, spread=1)
    paths, out = write_runs(tmp_path, [base, tuned]), tmp_path / "out.safetensors"
    table = tmp_path / "steps.csv"
    arguments = [*paths, "-o", out, "--score", score, "--alpha", given]
    told = json.loads(lofi("soup", *arguments, "--json", "--csv", table).stdout)

    def at(alpha):
        return {
            n: Tensor.of("F32", ck.mean([tuned[n].data], None, base[n].data, alpha)) for n in base
        }

    scores = [distance(numbers(at(alpha))) for alpha in alphas]
    best = max(range(len(alphas)), key=lambda i: scores[i])
    assert [(s["trial"], s["alpha"], s["score"], s["kept"]) for s in told["steps"]] == [
        ("alpha", a, s, i == best) for i, (a, s) in enumerate(zip(alphas, scores, strict=True))
    ]
    assert (told["alpha"], told["score"]) == (alphas[best], scores[best])
    assert told["base"] == str(paths[0]) and told["inputs"] == [str(paths[1])]
    assert same(read(out), at(alphas[best]))
    metadata = ck.header_of(out)["__metadata__"]
    assert json.loads(metadata["lofi.alpha"]) == alphas[best]
    assert json.loads(metadata["lofi.score"]) == scores[best]
    assert "lofi.scores" not in metadata and metadata["lofi.base"] == str(paths[0])
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["alpha"]) for r in rows] == alphas
    assert [r["kept"] for r in rows] == [str(int(i == best)) for i in range(len(alphas))]
    # The same by the name of the base, and shown as a table.
    arguments = [paths[1], "--base", paths[0], "-fo", out, "--score", score, "--alpha", given]
    lines = lofi("soup", *arguments).stdout.splitlines()
    assert len(lines) == len(alphas) + 2
    assert lines[-1] == f"{out}: alpha {alphas[best]:.9g}, score {scores[best]:.6g}"
    assert [line.split()[-1] for line in lines if " best " in line][-1] == f"{alphas[best]:.9g}"


def test_alphas_of_several_with_weights(tmp_path, score):
    runs = [near_one(i) for i in range(3)]
    (base, *tuned), out = write_runs(tmp_path, runs), tmp_path / "out.safetensors"
    arguments = ["--alpha", "0.5", "--weights", "1,-0.5", "--no-normalize"]
    lofi("soup", base, *tuned, "-o", out, "--score", score, *arguments)
    for name, tensor in read(out).items():
        x, y, z = (run[name].data for run in runs)
        assert tensor.same(Tensor.of("F32", x * (1 - 0.5 * 0.5) + (y * 1.0 + z * -0.5) * 0.5))


def test_the_first_of_equal_alphas(tmp_path):
    paths, out = write_runs(tmp_path, [near_one(0), near_one(1)]), tmp_path / "out.safetensors"
    told = lofi("soup", *paths, "-o", out, "--score", "echo {} 2", "--alpha", "0.4,0.2", "--json")
    assert json.loads(told.stdout)["alpha"] == 0.4


def test_options_of_average(tmp_path, score):
    runs = [near_one(i) for i in range(2)]
    paths, out = write_runs(tmp_path, runs), tmp_path / "out.safetensors"
    options = ["--only", "^a$", "--dtype", "bf16", "--verify", "--sha256", "--fsync"]
    lofi("soup", *paths, "-o", out, "--score", "echo {} 1", *options)
    wanted = {"a": Tensor.of("BF16", ck.mean([run["a"].data for run in runs]))}
    assert same(read(out), wanted | {"b.weight": runs[0]["b.weight"]})
    assert "lofi.sha256" in ck.header_of(out)["__metadata__"]


NAMES = [
    "with space",
    "quote'",
    'double"',
    "$(touch pwned)",
    "`touch pwned`",
    "-n",
    "a;b&c|d",
    "*",
    "\\",
]


@pytest.mark.parametrize(
    "command", ["{}", '"{}"', "'{}'", '"$(printf %s {})"', "x={}; printf '%s\\n' \"$x\""]
)
@pytest.mark.parametrize("name", NAMES)
def test_names_are_quoted(tmp_path, name, command):
    folder = tmp_path / "in here"
    folder.mkdir()
    path = f"{name}.safetensors"
    write(folder / path, near_one(0))
    shown = command if "printf '" in command else f"printf '%s\\n' {command}"
    seen = f"{shown} >> seen; echo 1"
    lofi("soup", "-o", "out.safetensors", "--score", seen, "--", path, cwd=folder)
    assert (folder / "seen").read_text() == ("./" if name == "-n" else "") + path + "\n"
    assert names_in(folder) == sorted([path, "out.safetensors", "seen"])


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("exit 3; {}", "it ended with exit code 3"),
        ("true {}", "printed nothing for"),
        ("echo done {}", "printed no number for"),
        ("echo 'loss: nan' {} nan", "it has to be finite"),
        ("echo {} -inf", "it has to be finite"),
        ("echo 0.5 {}", "printed no number for"),
        ("echo '0.5'; echo bye {}", "printed no number for"),
        ("kill -9 $$ {}", "signal 9"),
        ("no-such-program {}", "exit code 127"),
    ],
)
@pytest.mark.parametrize("fails_at", ["input", "mean"])
def test_failing_commands(tmp_path, command, told, fails_at):
    """Each leaves nothing behind, whether the output was there or not."""
    paths = write_runs(tmp_path, [near_one(0), near_one(1)])
    if fails_at == "mean":
        command = f"case {{}} in *run*) echo 1; exit 0;; esac; {command}"
    out, table = tmp_path / "out.safetensors", tmp_path / "steps.csv"
    for _ in range(2):
        before = names_in(tmp_path)
        arguments = [*paths, "-o", out, "--score", command, "--csv", table, "--force"]
        done = lofi("soup", *arguments, check=False)
        assert done.returncode == 1 and told in done.stderr
        name = "run0.safetensors" if fails_at == "input" else "out.safetensors"
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("lofi: ")]
        assert name in line
        assert names_in(tmp_path) == before
        out.write_text("as it was")
    assert out.read_text() == "as it was"


@pytest.mark.parametrize(
    ("printed", "score"),
    [
        ("0.75", 0.75), ("acc 0.75", 0.75), ("acc=0.75", 0.75), ("75%", 75), ("-1e-3", -1e-3),
        ("1\\n2\\n\\n  \\n", 2), ("a\\r\\n3.5\\r\\n", 3.5), ("x" * 20000 + " 4", 4), ("+.5", 0.5),
    ],
)  # fmt: skip
def test_what_is_a_score(tmp_path, printed, score):
    (path,) = write_runs(tmp_path, [near_one(0)])
    out, text = tmp_path / "out.safetensors", printed.replace("%", "%%")
    done = lofi("soup", path, "-o", out, "--score", f": {{}}; printf -- '{text}'", "--json")
    assert json.loads(done.stdout)["score"] == score


def processes_with(word):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word in (folder / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_command_that_hangs(tmp_path, stubborn):
    paths = write_runs(tmp_path, [near_one(0), near_one(1)])
    mark = f"9{os.getpid()}{int(stubborn)}.75"  # a time that only this test sleeps
    trap = "trap '' TERM; " if stubborn else ""
    command = f"case {{}} in *run*) echo 1;; *) {trap}sleep {mark} & sleep {mark};; esac"
    before = names_in(tmp_path)
    arguments = [*paths, "-o", tmp_path / "out.safetensors", "--score", command]
    done = lofi("soup", *arguments, "--score-timeout", "0.5", check=False)
    assert done.returncode == 1 and "longer than 0.5 s" in done.stderr
    assert "out.safetensors" in done.stderr
    assert names_in(tmp_path) == before and not processes_with(mark)


def test_a_background_process_is_not_waited_for(tmp_path):
    (path,) = write_runs(tmp_path, [near_one(0)])
    mark = f"8{os.getpid()}.75"
    out = tmp_path / "out.safetensors"
    lofi("soup", path, "-o", out, "--score", f": {{}}; sleep {mark} 2> /dev/null & echo 2")
    for pid in processes_with(mark):
        os.kill(pid, signal.SIGKILL)
    assert json.loads(ck.header_of(out)["__metadata__"]["lofi.score"]) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(tmp_path, number):
    paths = write_runs(tmp_path, [near_one(0), near_one(1)])
    mark = f"7{os.getpid()}{number:d}.75"
    command = f"case {{}} in *run*) echo 1;; *) touch started; sleep {mark}; echo 1;; esac"
    before = names_in(tmp_path)
    start = [ck.LOFI, "soup", *map(str, paths), "-o", "out.safetensors", "--score", command]
    with subprocess.Popen(start, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        while not (tmp_path / "started").exists():
            assert running.poll() is None
            time.sleep(0.02)
        assert any(name.startswith(".lofi-") for name in names_in(tmp_path))
        running.send_signal(number)
        _, told = running.communicate(timeout=60)
    assert running.returncode == -number and told == "lofi: the search was interrupted\n"
    assert names_in(tmp_path) == sorted([*before, "started"]) and not processes_with(mark)


def test_nobody_reads_the_table(tmp_path):
    paths = write_runs(tmp_path, [near_one(i) for i in range(3)])
    out = tmp_path / "out.safetensors"
    before = names_in(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    start = [ck.LOFI, "soup", *map(str, paths), "-o", str(out), "--score", "sleep 0.1; echo {} 1"]
    done = subprocess.run(start, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "lofi: the output can't be written\n")
    assert names_in(tmp_path) == sorted([*before, out.name])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "no command that scores is given"),
        (["--score", "cat"], "put {} where"),
        (["--score", "cat {}", "--score-timeout", "soon"], "give seconds"),
        (["--score", "cat {}", "--score-timeout", "-1"], "give seconds"),
        (["--score", "cat {}", "--weights", "1,2"], "--weights needs --alpha"),
        (["--score", "cat {}", "--base", "x"], "--base needs --alpha"),
        (["--score", "cat {}", "--alpha", "0:1"], "FROM:TO:STEP"),
        (["--score", "cat {}", "--alpha", "0:1:0"], "FROM:TO:STEP"),
        (["--score", "cat {}", "--alpha", "0:1:-0.1"], "FROM:TO:STEP"),
        (["--score", "cat {}", "--alpha", "0,,1"], "FROM:TO:STEP"),
        (["--score", "cat {}", "--alpha", "0,1,nan"], "finite"),
        (["--score", "cat {}", "--csv", "run0.safetensors"], "--csv is the checkpoint"),
        (["--score", "cat {}", "--dtype", "int3"], "int3"),
        (["--score", "cat {}", "--int", "none"], "(lofi soup --help)"),
        (["--bogus"], "--bogus is no option"),
    ],
)
def test_wrong_arguments(tmp_path, options, told):
    write_runs(tmp_path, [near_one(0), near_one(1)])
    before = names_in(tmp_path)
    inputs = ["run0.safetensors", "run1.safetensors", "-o", "out.safetensors"]
    done = lofi("soup", *inputs, *options, check=False, cwd=tmp_path)
    assert told in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""
    assert done.returncode == (1 if told == "finite" else 2)
    assert names_in(tmp_path) == before


def test_what_can_be_refused_is_refused_before_scoring(tmp_path):
    one, other = near_one(0), near_one(1)
    integers = [{**r, "n": Tensor("I64", np.array([i]))} for i, r in enumerate((one, other))]
    paths = write_runs(tmp_path, integers)
    write(tmp_path / "odd.safetensors", {"a": one["a"]})
    ck.write_shards(tmp_path / "folder", [integers[0]])
    before = names_in(tmp_path)

    def refused(*arguments, out="out.safetensors"):
        command = "touch scored; echo {} 1"
        arguments = [*arguments, "-o", out, "--score", command]
        done = lofi("soup", *arguments, check=False, cwd=tmp_path)
        assert done.returncode == 1 and names_in(tmp_path) == before
        return done.stderr

    assert "--int first" in refused(*paths)
    for more in ([], ["--alpha", "0,1"]):
        assert "'module.'" in refused(*paths, "--strip-prefix", "module.", *more)
    assert "b.weight" in refused(paths[0], tmp_path / "odd.safetensors")
    assert "name of a file" in refused(paths[0], tmp_path / "folder", "--int", "first")
    assert "there already" in refused(paths[0], out="odd.safetensors")
    assert "replace an input" in refused(*paths, "--force", "--int", "first", out=paths[1])
    assert "run9" in refused(paths[0], tmp_path / "run9.safetensors")
    assert "can't be found" in refused(paths[0], out="nowhere/out.safetensors")
    assert "can't be written" in refused(paths[0], "--csv", "nowhere/steps.csv")
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04 and more")
    before = names_in(tmp_path)
    assert "torch.save" in refused("x.pt")


def test_what_is_not_finite_is_told_of_the_output(tmp_path):
    """By the name of the input as it was given, and only of what is kept."""
    runs = [near_one(i) for i in range(3)]
    for run in (runs[0], runs[1]):
        run["a"].raw[0] = np.inf
        run["a"].raw[1] = np.nan
    paths, out = write_runs(tmp_path, runs), tmp_path / "out.safetensors"
    for score, bad in (("case {} in *run0*) echo 2;; *run*) echo 3;; *) echo 0;; esac", [1]),
                       ("case {} in *run2*) echo 2;; *) echo 1;; esac", [])):  # fmt: skip
        arguments = [*paths, "-fo", out, "--score", score, "--json"]
        done = lofi("soup", *arguments, check=False)
        told = json.loads(done.stdout)
        assert [f["input"] for f in told["nonfinite"]] == [str(paths[i]) for i in bad]
        assert done.returncode == (3 if bad else 0)
        assert len(done.stderr.splitlines()) == len(bad)


def test_prefixes(tmp_path):
    plain, wrapped = near_one(0), {f"module.{n}": t for n, t in near_one(1).items()}
    paths, out = write_runs(tmp_path, [plain, wrapped]), tmp_path / "out.safetensors"
    lofi("soup", *paths, "-o", out, "--score", "echo {} 1", "--strip-prefix", "module.")
    assert same(read(out), mean_of([plain, near_one(1)]))


def test_running_statistics_are_told_once(tmp_path):
    """Of the output, not of each mean that is tried; frozen ones are no reason."""

    def run_of(seed, frozen):
        rng = np.random.default_rng(0 if frozen else seed)
        names = ("bn.running_mean", "bn.running_var")
        return near_one(seed) | {n: Tensor.of("F32", rng.random(3)) for n in names}

    out = tmp_path / "out.safetensors"
    for frozen in (False, True):
        paths = write_runs(tmp_path, [run_of(i, frozen) for i in range(3)])
        done = lofi("soup", *paths, "-fo", out, "--score", "echo {} 1", "--json")
        lines = done.stderr.splitlines()
        assert len(lines) == (0 if frozen else 1)
        assert frozen or ("2 running statistics" in lines[0] and "update_bn" in lines[0])
        assert json.loads(done.stdout)["batchnorm_averaged"] == (0 if frozen else 2)
        metadata = ck.header_of(out)["__metadata__"]
        assert ("lofi.batchnorm" in metadata) is not frozen
        done = lofi("average", *paths, "-fo", out, "--json")
        assert ("update_bn" in done.stderr) is not frozen
        assert json.loads(done.stdout)["batchnorm_averaged"] == (0 if frozen else 2)
        assert lofi("average", *paths, "-fqo", out).stderr == ""
        # One input is no average, and neither is a weight of 0.
        assert lofi("average", *paths, "-fo", out, "--weights", "1,0,0").stderr == ""
        assert lofi("average", paths[0], "-fo", out, "--dtype", "bf16").stderr == ""
