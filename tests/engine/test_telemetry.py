"""Counts, snapshots and sentences against the trace they came from."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.engine.telemetry import Telemetry

PROMPT = [5, 17, 3, 90, 41]


@pytest.fixture
def engine(checkpoint):
    return ml.load(str(checkpoint("olmoe")), cache=4, routing=ml.routing.CachePrior(penalty=0.5, keep_top=1))


def test_uses_and_last_use_are_those_of_the_trace(engine):
    engine.generate(PROMPT, max_new_tokens=20)
    snapshot, ids = engine.telemetry.snapshot(), engine.trace.ids
    for layer in range(3):
        assert np.array_equal(snapshot.uses[layer], np.bincount(ids[:, layer].ravel(), minlength=8))
        for expert in range(8):
            when = np.nonzero((ids[:, layer] == expert).any(-1))[0]
            assert snapshot.last_use[layer, expert] == (when[-1] if when.size else -1)
    assert snapshot.hits.sum() == engine.stats.prefill.hits + engine.stats.decode.hits
    assert np.array_equal(snapshot.resident, engine.cache.resident)
    assert np.array_equal(np.nonzero(snapshot.used[1])[0], np.sort(ids[-1, 1]))


def test_a_snapshot_is_a_copy(engine):
    engine.generate(PROMPT, max_new_tokens=4)
    old = engine.telemetry.snapshot()
    kept = old.uses.copy()
    engine.generate(PROMPT, max_new_tokens=4)
    assert np.array_equal(old.uses, kept)


def test_snapshots_taken_while_another_thread_generates_are_whole(engine):
    done, torn = threading.Event(), []

    def watch() -> None:
        while not done.is_set():
            s = engine.telemetry.snapshot()
            if s.token and (s.uses.sum() != s.token * 6 or (s.resident.sum(1) > 4).any()):
                torn.append(s)

    thread = threading.Thread(target=watch)
    thread.start()
    engine.generate(PROMPT, max_new_tokens=60, stop_at_end=False)
    done.set()
    thread.join()
    assert not torn


def test_a_pass_longer_than_the_ring_keeps_its_last_tokens(engine):
    small = Telemetry(1, 8, 2, capacity=4)
    ids = np.arange(14, dtype=np.int32).reshape(7, 2) % 8
    for _ in range(2):
        small.begin(7, 0)
        for array, value in zip(small.room(0), (ids, 1, False, -1, 0, 1), strict=True):
            array[:] = value
        small.routing(0, np.zeros((7, 8), np.float32), np.zeros(8, bool))
        small.routed(0, 0.0)
        small.computed(0, None, 0, 0.0, 0.0)
        small.end([np.zeros(8, bool)])
    rows = np.arange(small.token - 4, small.token) % 4
    assert np.array_equal(small.ring.ids[rows, 0], ids[-4:]) and small.uses.sum() == 28


def test_swaps_are_explained_with_both_experts_and_what_was_saved(engine):
    for step in engine.stream(PROMPT, max_new_tokens=40, stop_at_end=False):
        lines = engine.explain(step)
        swaps = [line for line in lines if "took its place" in line]
        reads = [line for line in lines if "one read of" in line and "it was not resident" in line]
        if step.index:
            assert len(swaps) == step.swapped and len(reads) == step.misses
    assert any("saved" in line for s in [lines] for line in s) or engine.stats.decode.swapped > 0
    assert engine.explain() == lines


def test_an_engine_that_did_nothing_has_nothing_to_explain(engine):
    assert engine.explain() == ["nothing has been generated yet"]


def test_the_times_of_a_step_add_up_to_no_more_than_it_took(engine):
    for step in engine.stream(PROMPT, max_new_tokens=5):
        times = step.times
        assert min(times.read_s, times.route_s, times.experts_s, times.rest_s) >= 0 and times.total_s > 0
