# SPDX-License-Identifier: MIT
"""Rounds on a store: the steps that liblofi decides are taken as it says, by real processes."""

import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from harness.ranks import run_ranks

SECONDS = 20.0


def _board(rank: int):
    import os

    from lofi.rounds.board import StoreBoard

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, None, rank == 0, timedelta(seconds=SECONDS), False)
    return StoreBoard(store)


def _leave_together(board, rank: int, size: int) -> None:
    board.put(f"left/{rank}", "")
    end = time.monotonic() + SECONDS
    while rank == 0 and not board.has_all(f"left/{r}" for r in range(size)):
        assert time.monotonic() < end
        time.sleep(0.01)


def _meet(late: int | None, seconds: float, kind: str):
    import os

    from lofi.rounds import rounds

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    board = _board(rank)
    if rank == late:  # it comes when the others have given up
        assert board.part("round").wait("verdict", SECONDS)
    meeting = rounds.Round(board.part("round"), rank, size, kind=getattr(rounds, kind))
    word = str(10 - rank) if kind == "LEAST" else "word"
    closed = meeting.meet(seconds, "a test waits", word=word)
    onlooker = rounds.Round(board.part("round"), None, size, kind=getattr(rounds, kind)).look()
    _leave_together(board, rank, size)
    return closed, onlooker


@pytest.mark.quick
@pytest.mark.parametrize(("kind", "value"), [("LEAST", 7), ("DIFFERS", -1), ("NOTHING", 0)])
def test_all_come(kind, value):
    for closed, onlooker in run_ranks(_meet, 4, None, SECONDS, kind):
        assert closed.members == [0, 1, 2, 3] and closed.missing == [] and closed.value == value
        assert onlooker == closed


def test_one_is_late():
    for closed, onlooker in run_ranks(_meet, 4, 2, 1.0, "LEAST"):
        assert closed.members == [0, 1, 3] and closed.missing == [2] and closed.value == 7
        assert onlooker == closed


def board_of_one_process():
    from lofi.rounds.board import StoreBoard

    return StoreBoard(dist.HashStore())


def test_the_first_to_close_decides():
    from lofi.rounds.rounds import LEAST, Round

    board = board_of_one_process()
    assert Round(board, None, 3, 1, LEAST).look() is None
    first = Round(board, 1, 3, 1, LEAST).announce("8")
    second = Round(board, 0, 3, 1, LEAST).announce("5")
    assert first == second == Round(board, None, 3, 1, LEAST).look()
    assert first.members == [1] and first.value == 8


def test_who_only_announces_closes_if_it_is_the_last():
    from lofi.rounds.rounds import DIFFERS, Round

    board = board_of_one_process()
    early = Round(board, 0, 2, kind=DIFFERS)
    assert early.announce("here") is None
    assert Round(board, 1, 2, kind=DIFFERS).announce("there").value == 1
    assert early.look().value == 1


def test_withdrawn_it_has_not_come():
    from lofi.rounds.rounds import Round

    board = board_of_one_process()
    early = Round(board, 0, 2)
    assert early.announce("here") is None
    early.withdraw()
    assert Round(board, 1, 2).meet(0.1, "a test waits").members == [1]


def test_it_stops_when_somebody_is_known_not_to_come():
    from lofi.rounds.rounds import Round

    board, begin = board_of_one_process(), time.monotonic()
    closed = Round(board, 0, 2).meet(60.0, "a test waits", stop=lambda: True, poll=0.1)
    assert closed.missing == [1] and time.monotonic() - begin < 30


def test_a_foreign_verdict_is_refused():
    from lofi.rounds.rounds import Round

    board = board_of_one_process()
    board.put("verdict", "everybody")
    with pytest.raises(RuntimeError, match="no verdict of a round of 2 members"):
        Round(board, 0, 2).meet(0.1, "a test waits")


def test_progress():
    from lofi.rounds.progress import Progress

    progress = Progress(board_of_one_process(), 3)
    assert not progress.any_past(0, but=0) and not progress.any_failed()
    progress.post(1, "5")
    assert progress.any_past(4, but=0) and not progress.any_past(5, but=0)
    assert not progress.any_past(4, but=1)
    progress.post(1, "end")
    assert progress.any_past(100, but=0)
    progress.post_failure(2)
    assert progress.any_failed() and progress.has_failed(2) and progress.any_past(0, but=1)


def test_a_store_wakes_who_waits():
    board = board_of_one_process()
    threading.Timer(0.2, board.put, ("name", "word")).start()
    assert board.wait("name", SECONDS) and board.get("name") == "word"
    assert not board.wait("other", 0.05) and board.get("other") is None


def _meet_apart(words):
    import os

    from lofi.rounds import rounds

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    board = _board(rank)
    closed = None
    if words[rank] is not None:
        begin = time.monotonic()
        meeting = rounds.Round(board.part("round"), rank, size, kind=rounds.DIFFERS)
        closed = meeting.meet(SECONDS, "a test waits", word=words[rank], poll=SECONDS)
        assert time.monotonic() - begin < SECONDS / 2
    _leave_together(board, rank, size)
    return closed


@pytest.mark.quick
def test_words_that_differ_are_told_at_once():
    """To all who wait, though the last member never comes."""
    results = run_ranks(_meet_apart, 4, ["a", "b", "a", None])
    assert results[3] is None
    for closed in results[:3]:
        assert closed == results[0] and closed.value >= 0 and 3 in closed.missing


def test_a_word_on_many_names_at_once():
    board = board_of_one_process()
    board.put("1", "one")
    assert board.get_all(["0", "1"]) == [None, "one"]
    board.put("0", "zero")
    assert board.get_all(["0", "1"]) == ["zero", "one"]


def test_words_of_another_kind_of_round_are_refused():
    from lofi.rounds.rounds import DIFFERS, LEAST, Round

    board = board_of_one_process()
    board.put("0", "no number")
    with pytest.raises(RuntimeError, match="member 0 announced 'no number'"):
        Round(board, 1, 2, kind=LEAST).meet(0.1, "a test waits", word="3")
    board = board_of_one_process()
    board.put("verdict", "0-1;7")
    with pytest.raises(RuntimeError, match="of another kind of round"):
        Round(board, 0, 2, kind=DIFFERS).meet(0.1, "a test waits")


def checker(store, node):
    from lofi.groups.crossing import Checker

    return Checker(
        SimpleNamespace(
            rank=node, node_count=2, place=lambda _: 0, node_of=lambda n: n, node_number=lambda n: n
        ),
        store,
    )


def taken_back_job(is_closed):
    dist.init_process_group("lofi")  # for its settings
    store = dist.HashStore()
    here, there = checker(store, 0), checker(store, 1)
    here.announce("an average")
    here.withdraw()
    if is_closed:
        there.announce("an average")
        there.board.part("1/0").put("verdict", "0-1;-1")
    told = []

    def compare():
        try:
            there.compare("a broadcast")
        except Exception as error:
            told.append(error)

    other = threading.Thread(target=compare)
    other.start()
    here.compare("a broadcast")
    other.join()
    assert not told
    return here.count, there.count


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_tag_that_was_taken_back(is_closed):
    """Also where another node had listed it before, and closes the round with it afterwards."""
    assert run_ranks(taken_back_job, 1, is_closed) == [(1 + is_closed, 1 + is_closed)]


class StoreThatLoses:
    """A store from which a word goes between the question whether it is there and the next call."""

    def __init__(self, name: str):
        self._store, self._name = dist.HashStore(), name
        self._store.set_timeout(timedelta(seconds=1))

    def check(self, names):
        is_there = self._store.check(names)
        if self._name in names:
            self._store.delete_key(self._name)
        return is_there

    def __getattr__(self, name):
        return getattr(self._store, name)


def test_a_word_that_goes_while_it_is_read():
    from lofi.rounds.board import StoreBoard

    board = StoreBoard(StoreThatLoses("0"))
    board.put("0", "zero")
    board.put("1", "one")
    assert board.get("0") in ("zero", None)
    board.put("0", "zero")
    assert board.get_all(["0", "1"]) == [None, "one"]


@pytest.mark.parametrize("kind", ["hash", "file", "tcp"])
def test_a_read_writes_nothing(kind, tmp_path):
    from lofi.rounds.board import StoreBoard

    store = {
        "hash": dist.HashStore,
        "file": lambda: dist.FileStore(str(tmp_path / "store"), 1),
        "tcp": lambda: dist.TCPStore("127.0.0.1", 0, 1, True),
    }[kind]()
    board = StoreBoard(store).part("part")
    assert board.get("name") is None and not board.has_all(["name"])
    assert board.put_once("name", "word") == "word" == board.get("name")
    assert board.put_once("name", "other") == "word" == board.get("name")
    board.remove("name")
    assert board.get("name") is None and not board.has_all(["name"])


def test_words_that_are_no_text_are_refused():
    from lofi.rounds.board import StoreBoard
    from lofi.rounds.rounds import LEAST, Round

    store = dist.HashStore()
    store.set("0", b"\xff\x01")
    with pytest.raises(RuntimeError, match=r"member 0 announced '[?]+'"):
        Round(StoreBoard(store), 1, 2, kind=LEAST).meet(0.1, "a test waits", word="3")


def test_a_word_withdrawn_between_look_and_list():
    """The round isn't closed without the member, whose time to come isn't up."""
    from lofi.rounds.rounds import DIFFERS, Round

    board = board_of_one_process()
    early = Round(board, 0, 2, kind=DIFFERS)
    assert early.announce("here") is None
    get_all = board.get_all

    def withdraw_and_get_all(names):
        early.withdraw()
        board.get_all = get_all
        return get_all(names)

    board.get_all = withdraw_and_get_all
    last = Round(board, 1, 2, kind=DIFFERS)
    assert last.announce("here") is None
    assert Round(board, 0, 2, kind=DIFFERS).announce("here").members == [0, 1]
    assert last.look().members == [0, 1]
