"""Changes of a live engine: all of it or nothing, and noted: what, when and by whom."""

from __future__ import annotations

import signal
import threading

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.cache import ExpertCache
from moe_lab.cache.slots import LayerSlots
from moe_lab.engine.applied import acting
from moe_lab.errors import BudgetError, PolicyError
from moe_lab.kernels.residency import LayerState

PROMPT = [5, 17, 3, 90, 41]


@pytest.fixture
def engine(checkpoint):
    made = ml.load(str(checkpoint("olmoe")), cache=4)
    made.generate(PROMPT, max_new_tokens=8)
    yield made
    made.close()


def picture(engine) -> tuple:
    """All that a change may alter."""
    experts = engine._core.experts
    return (engine.cache.slots, [layer.arena.shape for layer in experts.layers], [s.C for s in experts.states],
            engine.cache.resident.tolist(), engine.routing, engine.eviction, engine.applied)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_resize_that_is_cut_off_leaves_every_layer_as_it_was(engine, monkeypatch, error):
    calls: list[int] = []
    expected = engine.generate(PROMPT, max_new_tokens=8).ids

    def failing(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise error
        made(self, *args)

    made = LayerSlots.__init__
    before = picture(engine)
    monkeypatch.setattr(LayerSlots, "__init__", failing)
    with pytest.raises(error):
        engine.cache.resize(7)
    monkeypatch.undo()
    assert picture(engine) == before and engine.generate(PROMPT, max_new_tokens=8).ids == expected


def test_a_resize_without_memory_is_refused_with_a_budget_error(engine, monkeypatch):
    before = picture(engine)

    def refused(*args, **kwargs):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("moe_lab.cache.slots.mmap.mmap", refused)
    with pytest.raises(BudgetError, match="take a smaller cache"):
        engine.cache.resize(8)
    monkeypatch.undo()
    assert picture(engine) == before


def test_ctrl_c_in_the_middle_of_a_resize_acts_when_every_layer_is_through(engine, monkeypatch):
    moved, move = [], LayerSlots.move_into

    def interrupted(self, other):
        move(self, other)
        moved.append(1)
        if len(moved) == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(LayerSlots, "move_into", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.cache.resize(7)
    monkeypatch.undo()
    assert engine.cache.slots == 7 and len(moved) == 3
    assert {layer.arena.shape[0] for layer in engine._core.experts.layers} == {7}
    assert engine.generate(PROMPT, max_new_tokens=8).finish == "length"


@pytest.mark.parametrize(("knob", "change"), [
    ("routing", lambda engine: setattr(engine, "routing", "cache-prior")),
    ("eviction", lambda engine: setattr(engine, "eviction", "lfu")),
    ("cache", lambda engine: engine.cache.resize(7)),
])
def test_ctrl_c_in_the_moment_of_a_change_leaves_engine_log_and_header_of_one_mind(engine, monkeypatch, knob, change):
    def interrupted(self, states):
        adopt(self, states)
        signal.raise_signal(signal.SIGINT)

    adopt = ExpertCache._adopt
    monkeypatch.setattr(ExpertCache, "_adopt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        change(engine)
    monkeypatch.undo()
    states, facts = engine._core.experts.states, engine.telemetry.facts
    assert {state.routing for state in states} == {engine.routing}
    assert {state.eviction for state in states} == {engine.eviction}
    assert {state.C for state in states} == {engine.cache.slots} == {facts.slots}
    assert facts.state == engine.setting and facts.exact == engine.exact == (knob != "routing")
    assert engine.applied[-1].knob == knob


@pytest.mark.parametrize("knob", ["routing", "eviction"])
def test_a_policy_that_a_layer_refuses_changes_no_layer(engine, monkeypatch, knob):
    before, calls = picture(engine), []
    change = getattr(LayerState, f"set_{knob}")

    def refusing(self, policy):
        calls.append(1)
        if len(calls) == 2:
            raise PolicyError("not this layer")
        change(self, policy)

    monkeypatch.setattr(LayerState, f"set_{knob}", refusing)
    with pytest.raises(PolicyError, match="not this layer"):
        setattr(engine, knob, "cache-prior" if knob == "routing" else "lfu")
    monkeypatch.undo()
    assert picture(engine) == before


def test_a_load_cut_off_between_reserving_and_filling_a_slot_loses_none(engine, monkeypatch):
    reserve, calls = LayerSlots.reserve, []

    def cut_off(self):
        slot = reserve(self)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return slot

    engine.cache.reset()
    monkeypatch.setattr(LayerSlots, "reserve", cut_off)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, max_new_tokens=8)
    monkeypatch.undo()
    for layer in engine._core.experts.layers:
        assert sorted([*layer.free, *layer.slot_of[layer.slot_of >= 0]]) == list(range(4))
    assert engine.generate(PROMPT, max_new_tokens=8).finish == "length"


# --- the log ----------------------------------------------------------------------------------------------


def test_every_change_is_noted_with_its_knob_its_value_its_token_and_who_made_it(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache=4, disk=ml.Disk("1 GB/s"))
    for step in engine.stream(PROMPT, max_new_tokens=7):
        if step.index == 1:
            engine.routing = "cache-prior"
        if step.index == 2:
            with acting("dashboard"):
                engine.cache.resize(6)
        if step.index == 3:
            engine.sampling = ml.Sampling(temperature=0.5)
            engine.disk.bandwidth = 2e9
        if step.index == 4:
            engine.eviction = "lfu"
            engine.cache.reset()
    noted = [(one.knob, one.value, one.token, one.by) for one in engine.applied]
    n = len(PROMPT)
    assert noted == [
        ("sampling", ml.Sampling(), 0, "code"), ("routing", ml.routing.CachePrior(), n + 1, "code"),
        ("cache", 6, n + 2, "dashboard"), ("sampling", ml.Sampling(temperature=0.5), n + 3, "code"),
        ("disk", 2e9, n + 3, "code"), ("eviction", ml.eviction.LFU(), n + 4, "code"), ("reset", None, n + 4, "code"),
    ]
    assert [one.number for one in engine.applied] == list(range(1, 8))
    assert engine.applied[2].before == 4 and engine.telemetry.snapshot().applied == engine.applied


def test_a_change_by_another_thread_bears_its_name_and_the_token_from_which_it_acts(engine):
    at = engine.telemetry.token
    for step in engine.stream(PROMPT, max_new_tokens=3):
        if step.index == 0:
            thread = threading.Thread(target=lambda: engine.cache.resize(5), name="tuner")
            thread.start()
            thread.join()
            assert engine.applied[-1].knob != "cache"
    assert [(one.value, one.token, one.by) for one in engine.applied if one.knob == "cache"] == [
        (5, at + len(PROMPT), "thread tuner")]


def test_what_changes_nothing_is_not_noted(engine):
    noted = engine.applied
    engine.cache.resize(4)
    engine.routing, engine.eviction = "original", ml.eviction.LRU
    engine.sampling = ml.Sampling(temperature=2.0)          # nobody generates
    assert engine.applied == noted


def test_a_change_that_cannot_be_made_when_its_turn_comes_is_noted_as_refused_and_the_text_goes_on(
        engine, monkeypatch, capsys):
    for step in engine.stream(PROMPT, max_new_tokens=4):
        if step.index == 0:
            thread = threading.Thread(target=lambda: engine.cache.resize(6))
            thread.start()
            thread.join()
            monkeypatch.setattr(LayerSlots, "__init__", no_memory)
    assert step.finish == "length" and engine.cache.slots == 4
    assert engine.applied[-1].knob == "cache" and "no memory" in engine.applied[-1].error
    assert "cache stays 4: no memory" in capsys.readouterr().err


def no_memory(*args: object) -> None:
    raise BudgetError("no memory")


def test_the_log_keeps_the_newest_and_counts_on(engine):
    first = len(engine.applied)
    for i in range(100):
        engine.cache.resize(4 + i % 2 + 1)
    assert len(engine.applied) == 64 and engine.applied[-1].number == first + 100


def test_a_snapshot_says_what_is_in_force_at_its_token(engine):
    for _ in engine.stream(PROMPT, max_new_tokens=6):
        now = engine.telemetry.snapshot()
        assert (now.slots, now.exact, now.state) == (engine.cache.slots, engine.exact, engine.setting)
        engine.cache.resize(4 + now.token % 3)
        engine.routing = "cache-prior" if now.exact else "original"
        after = engine.telemetry.snapshot()
        assert after.exact != now.exact and after.applied[-1].knob == "routing"
        assert np.array_equal(after.resident, engine.cache.resident)


def test_what_is_turned_inside_a_state_of_its_own_waits_for_its_end(engine):
    with engine.fresh_state(slots=8), engine.fresh_state():
        engine.routing, engine.eviction = "max-rank", "lfu"
        engine.cache.resize(2)
        assert engine.exact and engine.cache.slots == 4
    states = engine._core.experts.states
    assert not engine.exact and engine.cache.slots == 2
    assert {(s.routing, s.eviction, s.C) for s in states} == {(engine.routing, engine.eviction, 2)}
    assert engine.generate(PROMPT, max_new_tokens=8).finish == "length"


def test_what_is_turned_in_a_score_between_two_tokens_acts_at_the_next(engine):
    for step in engine.stream(PROMPT, max_new_tokens=3):
        if step.index == 0:
            with engine.fresh_state():
                engine.cache.resize(2)
            assert engine.cache.slots == 4
    assert engine.cache.slots == 2


def test_figures_of_a_run_bear_the_setting_that_it_ran_under(engine):
    engine.routing = "max-rank"
    engine.generate(PROMPT, max_new_tokens=8)
    ran = engine.setting
    engine.routing = "original"
    engine.cache.resize(6)
    assert not engine.stats.exact and engine.stats.setting == engine.trace.meta["setting"] == ran
    assert engine.exact and engine.generate(PROMPT, max_new_tokens=8).stats.exact
    assert engine.score(PROMPT).stats.setting == engine.stats.setting == engine.setting


def test_a_run_that_was_lossy_for_some_tokens_is_not_exact(engine):
    engine.routing = "max-rank"
    for step in engine.stream(PROMPT, max_new_tokens=8):
        if step.index == 5:
            engine.routing = "original"
    assert engine.exact and not engine.stats.exact
    assert engine.stats.setting == f"{engine.setting} (changed 1 time on the way)"
