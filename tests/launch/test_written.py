# SPDX-License-Identifier: MIT
"""The average ends in the script's files, however the script writes them."""

import pytest
import torch
from harness.launched import WRAPPED, launch, load, mean
from harness.rank_jobs import equal
from harness.truth import mean_of_states

START = WRAPPED.replace("if dist.get_rank() == 0", "if False")
STATE = "model.module.state_dict()"

# What rank 0 does at the end, and the files in which the average is then, by name.
WAYS = {
    "a buffer": (
        f"""
        buffer = io.BytesIO()
        torch.save({STATE}, buffer)
        open("buffered.pt", "wb").write(buffer.getvalue())
        """,
        ["buffered.lofi.pt"],
    ),
    "the legacy format": (
        f'torch.save({STATE}, "old.pt", _use_new_zipfile_serialization=False)',
        ["old.lofi.pt"],
    ),
    "an open file": (
        f"""
        with open("stream.bin", "wb") as file:
            torch.save({STATE}, file)
        """,
        ["stream.lofi.bin"],
    ),
    "a temporary name": (
        f"""
        torch.save({STATE}, "tmp.pth.tar")
        os.replace("tmp.pth.tar", "last.pth.tar")
        """,
        ["last.pth.lofi.tar"],
    ),
    "a temporary folder": (
        f"""
        import pathlib
        os.makedirs("tmp-checkpoint")
        torch.save({STATE}, "tmp-checkpoint/model.pt")
        pathlib.Path("tmp-checkpoint").rename("checkpoint-3")
        """,
        ["checkpoint-3/model.lofi.pt"],
    ),
    "a link": (
        f"""
        torch.save({STATE}, "last.pt")
        os.link("last.pt", "best.pt")
        """,
        ["best.lofi.pt", "last.lofi.pt"],
    ),
    "a copy": (
        f"""
        import shutil
        torch.save({STATE}, "last.pt")
        shutil.copy2("last.pt", "best.pt")
        """,
        ["best.lofi.pt", "last.lofi.pt"],
    ),
    "a move": (
        f"""
        import shutil
        torch.save({STATE}, "here.pt")
        os.makedirs("there")
        shutil.move("here.pt", "there/model.pt")
        """,
        ["there/model.lofi.pt"],
    ),
}


def at_the_end(script):
    lines = [f"    {line}" for line in script.strip("\n").split("\n")]
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "if dist.get_rank() == 0:\n" + "\n".join("    " + line[indent:] for line in lines)


@pytest.mark.parametrize("way", WAYS)
def test_the_average_is_beside_it(tmp_path, way):
    script, names = WAYS[way]
    ended = launch(tmp_path, START, at_the_end(script))
    assert all(rank.code in (0, None) for rank in ended), ended
    written = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.lofi.*")]
    assert sorted(written) == names
    for name in names:
        assert equal(load(tmp_path / name), mean(tmp_path))
        assert f"{name} (everything else as the script saved it)" in ended[0].stderr


def test_the_legacy_format_stays(tmp_path):
    script, _ = WAYS["the legacy format"]
    launch(tmp_path, START, at_the_end(script))
    assert (tmp_path / "old.lofi.pt").read_bytes()[:2] == b"\x80\x02"  # no zip


def test_files_without_weights_are_left_alone(tmp_path):
    """Logs, arrays and archives that are no checkpoint."""
    script = """
    import zipfile
    open("log.txt", "w").write("loss 0.1")
    with zipfile.ZipFile("data.zip", "w") as archive:
        archive.writestr("a", "b")
    """
    ended = launch(tmp_path, START, at_the_end(script))
    assert all(rank.code in (0, None) for rank in ended), ended
    assert not list(tmp_path.glob("*.lofi.*"))
    assert equal(load(tmp_path / "lofi-average.pth"), mean(tmp_path))


def test_an_average_of_its_own_goes_to_the_output_folder(tmp_path):
    (tmp_path / "out").mkdir()
    ended = launch(tmp_path, START, argv=["script.py", "--output-dir=out"])
    assert all(rank.code in (0, None) for rank in ended), ended
    assert equal(load(tmp_path / "out" / "lofi-average.pth"), mean(tmp_path))


def test_an_earlier_file_of_another_model_is_no_form(tmp_path):
    script = at_the_end('torch.save({"other": torch.ones(3)}, "other.pt")')
    launch(tmp_path, START, script, "train(model, 1)\nnote_own(model.module)")
    written = [path for path in tmp_path.iterdir() if "lofi" in path.name]
    assert len(written) == 1
    own = [load(tmp_path / f"own{rank}.test") for rank in (0, 1)]
    average = torch.load(written[0], weights_only=True)
    assert equal(average, mean_of_states(*own))
