"""One source of truth: whoever changes a knob, dashboards show what the engine does, and mark it."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

import moe_lab as ml
from moe_lab.errors import SettingError
from moe_lab_widgets import Lab, cells

PROMPT = [5, 17, 3, 90, 41]

CHANGES = {
    "routing": (lambda e: setattr(e, "routing", ml.routing.MaxRank()), lambda b: setattr(b, "routing", "max-rank")),
    "eviction": (lambda e: setattr(e, "eviction", "lfu"), lambda b: setattr(b, "eviction", "lfu")),
    "slots": (lambda e: e.cache.resize(3), lambda b: setattr(b, "slots", 3)),
    "reset": (lambda e: e.cache.reset(), lambda b: b.reset()),
    "bandwidth": (lambda e: setattr(e.disk, "bandwidth", 5e9) or e.applied, lambda b: setattr(b, "bandwidth", 5e3)),
    "temperature": (lambda e: setattr(e, "sampling", ml.Sampling(temperature=0.5)),
                    lambda b: setattr(b, "temperature", 0.5)),
}
"""How code changes each knob, and how a second dashboard does."""


@pytest.fixture
def engine(checkpoint):
    with ml.load(str(checkpoint("olmoe", max_position_embeddings=4096)), cache=6, disk=ml.Disk("9 GB/s")) as made:
        yield made


@pytest.fixture
def boards(engine):
    """Two dashboards on one engine; the second is only looked at, or turned."""
    made = Lab(engine), Lab(engine)
    yield made
    for board in made:
        board.close()


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


def shown(board) -> dict:
    """Header and controls."""
    return {name: getattr(board, name) for name in (
        "exact", "disk", "slots", "routing", "routing_values", "eviction", "eviction_values", "bandwidth", "temperature",
        "top_k", "top_p", "repetition_penalty", "seed")}


def true(engine, board) -> bool:
    """Whether a dashboard shows what the engine does."""
    now, sampling = shown(board), engine.sampling
    return (now["exact"], now["disk"], now["slots"]) == (engine.exact, repr(engine.disk), engine.cache.slots) and (
        now["routing"], now["eviction"], now["bandwidth"]) == (
        engine.routing.name, engine.eviction.name, engine.disk.bandwidth / 1e6) and (
        now["routing_values"] == engine.routing.values()) and (not engine.busy or now["temperature"] == sampling.temperature)


def make(who: str, knob: str, engine, boards) -> None:
    by_code, by_board = CHANGES[knob]
    if who == "dashboard":
        by_board(boards[1])
    elif who == "code":
        by_code(engine)
    else:
        thread = threading.Thread(target=by_code, args=(engine,), name="tuner")
        thread.start()
        thread.join()


@pytest.mark.parametrize("when", ["running", "resting"])
@pytest.mark.parametrize("who", ["code", "thread tuner", "dashboard"])
@pytest.mark.parametrize("knob", CHANGES)
def test_every_knob_turned_by_anybody_at_any_time_is_shown_and_marked_at_the_next_token(engine, boards, knob, who, when):
    boards[0].start(PROMPT, max_new_tokens=4000, temperature=1.0, stop_at_end=False)
    until(lambda: engine.telemetry.token > 10)
    if when == "resting":
        boards[0].stop()
    noted = engine.applied[-1].number
    make(who, knob, engine, boards)
    if when == "resting":
        if knob == "temperature" and who != "dashboard":
            return                                  # nobody generates: engine.sampling has nobody to act on
        boards[0].start(PROMPT, max_new_tokens=4000, stop_at_end=False)
    until(lambda: engine.applied[-1].number > noted)
    at = engine.telemetry.token
    until(lambda: engine.telemetry.token > at + 1)
    boards[0].stop()
    change, mark = engine.applied[-1], boards[0]._session.history.marks()[-1]
    by = "code" if knob == "bandwidth" and who != "dashboard" else who           # a disk does not know who set it
    assert change.by == by
    assert (mark["knob"], mark["by"]) == (knob, "" if by == "dashboard" else by)
    assert all(true(engine, board) for board in boards)


def test_a_change_in_the_middle_of_a_run_is_shown_with_the_token_that_felt_it(engine, boards):
    board = boards[0]
    for step in board.watch(engine.stream(PROMPT, max_new_tokens=8)):
        if step.index == 3:
            engine.routing, at = "max-rank", step.position
            engine.cache.resize(4)
        if step.index == 4:
            assert (board.routing, board.exact, board.slots) == ("max-rank", False, 4)
    assert board._session.history.marks()[0]["words"].startswith("max-rank")
    assert [(one.knob, one.token) for one in engine.applied[-2:]] == [("routing", at + 1), ("cache", at + 1)]
    assert [m["token"] for m in board._session.history.marks()] == [4, 4]


def test_what_code_changes_at_rest_is_shown_without_a_token_and_without_a_cell(engine, boards):
    engine.generate(PROMPT, max_new_tokens=3)
    engine.routing = "max-rank"
    engine.disk.bandwidth = 4e9
    until(lambda: all(true(engine, board) for board in boards))
    assert boards[0].routing == "max-rank" and not boards[0].exact


def test_a_run_that_code_began_is_seen_and_stopped_by_a_dashboard(engine, boards):
    steps = []
    thread = threading.Thread(target=lambda: steps.extend(engine.stream(PROMPT, max_new_tokens=4000, stop_at_end=False)))
    thread.start()
    until(lambda: boards[0].foreign)
    boards[0].stop()
    thread.join(20)
    assert 0 < len(steps) < 4000 and not engine.busy
    until(lambda: not boards[0].foreign)
    boards[0].start(PROMPT, max_new_tokens=2)
    assert len(boards[0].result(20).ids) == 2


def test_a_stream_left_in_a_loop_that_failed_is_ended_by_stop_and_the_dashboard_runs(engine, boards):
    stream = engine.stream(PROMPT, max_new_tokens=50)
    next(stream)
    boards[0].stop()
    boards[0].start(PROMPT, max_new_tokens=3)
    assert len(boards[0].result(20).ids) == 3 and list(stream) == []


def test_a_run_of_code_takes_over_from_a_paused_dashboard_which_can_go_on_afterwards(engine, boards, monkeypatch):
    expected = engine.generate(PROMPT, max_new_tokens=12).ids
    monkeypatch.setattr("moe_lab.engine.owner.LEFT_S", -1.0)
    board = boards[0]
    board.start(PROMPT, max_new_tokens=12, temperature=0.0)
    board.pause()
    until(lambda: board.state == "paused")
    assert len(engine.trace) < len(PROMPT) + 11
    assert engine.generate(PROMPT, max_new_tokens=4).ids == expected[:4]
    monkeypatch.undo()
    board.resume()
    assert board.result(20).ids == expected and board.state == "finished"


# --- letting go --------------------------------------------------------------------------------------------


def test_a_closed_dashboard_lets_its_engine_go(checkpoint):
    seen = []
    for _ in range(3):
        engine = ml.load(str(checkpoint("olmoe")), cache=3)
        board = Lab(engine)
        board.start(PROMPT, max_new_tokens=2)
        board.result(20)
        board.to_frame(), board.png(), repr(board)
        seen.append((weakref.ref(engine), board))
        engine._ahead.join()
        board.close()
        board.close()
        del engine
    gc.collect()
    until(lambda: not any(there() for there, _ in seen))
    assert "closed" in repr(board)
    for use in (lambda: board.engine, board.start, board.stop, lambda: setattr(board, "slots", 5)):
        with pytest.raises(SettingError, match="closed"):
            use()


def test_a_dashboard_closed_after_a_run_that_failed_lets_its_engine_go_without_garbage_collection(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache=3)
    engine.hf.lm_head.weight.data.fill_(float("nan"))
    board, there = Lab(engine), weakref.ref(engine)
    gc.disable()
    try:
        board.start(PROMPT, max_new_tokens=2)
        with pytest.raises(ml.MoELabError, match="nan"):
            board.result(20)
        engine._ahead.join()
        board.close()
        del engine
        until(lambda: there() is None)          # a picture that is just being made holds it that long
    finally:
        gc.enable()


def test_a_closed_dashboard_that_is_displayed_says_so(engine, capsys):
    board = Lab(engine)
    board.close()
    board._ipython_display_()
    assert capsys.readouterr().out == "MoE Lab: this dashboard is closed.\n"


def test_a_dashboard_that_nobody_holds_any_more_is_gone_once_closed(engine):
    board = weakref.ref(Lab(engine))
    board().close()
    gc.collect()
    assert board() is None


def test_no_thread_looks_at_an_engine_without_dashboards(engine):
    others = set(threading.enumerate())

    def looking() -> int:
        return sum(thread.name == "moe-lab-pulse" for thread in set(threading.enumerate()) - others)

    one, two = Lab(engine), Lab(engine)
    assert looking() == 1
    one.close()
    assert looking() == 1
    two.close()
    until(lambda: looking() == 0)


class Board:
    closed = False

    def close(self) -> None:
        self.closed = True


class Shell:
    """IPython's shell in a kernel that runs ``cell`` for the ``run``-th time."""

    def __init__(self, cell: str, run: str) -> None:
        self.kernel = self
        self._message = {"metadata": {"cellId": cell}, "header": {"msg_id": run}}

    def get_parent(self, channel: str) -> dict:
        return self._message


def test_a_cell_run_again_closes_the_dashboards_of_its_run_before_and_no_others():
    def made(cell: str, run: str) -> Board:
        board = Board()
        cells.move_in(board, cells.present(Shell(cell, run)))
        return board

    one, two, elsewhere = made("c", "1"), made("c", "1"), made("d", "2")
    again = made("c", "3")
    assert [b.closed for b in (one, two, elsewhere, again)] == [True, True, False, False]
    assert cells.present(None) is None and cells.present(object()) is None
    assert cells.present(type("Plain", (), {"kernel": Shell("", "")})()) == ("", "")


def test_a_dashboard_made_anew_by_its_cell_goes_on_with_the_run_in_progress(engine, monkeypatch):
    runs = iter([cells.Run("c", "1"), cells.Run("c", "2")])
    monkeypatch.setattr(cells, "present", lambda shell: next(runs))
    first = Lab(engine)
    first.start(PROMPT, max_new_tokens=4000, stop_at_end=False)
    second = Lab(engine)
    at = engine.telemetry.token
    until(lambda: engine.telemetry.token > at + 3)
    assert second.state == "running" and "closed" in repr(first)
    second.close()
    until(lambda: not engine.busy)
