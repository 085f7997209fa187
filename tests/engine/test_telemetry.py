"""Counts, snapshots and sentences against the trace they came from."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from layers import new_layer, random_logits, softmax

import moe_lab as ml
from moe_lab.engine.telemetry import Telemetry
from moe_lab.errors import SettingError
from moe_lab.kernels.layout import OWN
from moe_lab.kernels.walk import forced, walk

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


def test_a_layer_that_a_pass_leaves_out_has_used_no_expert(engine):
    engine.generate(PROMPT, max_new_tokens=4, stop_at_end=False)
    before = engine.telemetry.snapshot()
    engine.hf.model.layers[1].mlp.forward = lambda x: 0 * x
    engine.generate(PROMPT, max_new_tokens=4, stop_at_end=False)        # a pass of many tokens, then passes of one
    snapshot, trace = engine.telemetry.snapshot(), engine.trace
    assert (trace.ids[:, 1] == -1).all() and (trace.weights[:, 1] == 0).all()
    assert not snapshot.used[1].any() and np.array_equal(snapshot.uses[1], before.uses[1])
    assert (snapshot.uses[[0, 2]].sum(1) == before.uses[[0, 2]].sum(1) + 16).all()


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


def test_a_pass_longer_than_the_ring_keeps_its_last_tokens(rng):
    state = new_layer(8, 2, 4)
    small = Telemetry([state], capacity=4)
    for _ in range(2):
        logits = random_logits(rng, 7, 8)
        small.begin(7, 0)
        ids = walk(state, logits, softmax(logits), small.room(0)).ids.copy()
        small.routed(0, 0.0)
        small.computed(0, 0, 0.0, 0.0)
        small.end()
    rows = np.arange(small.token - 4, small.token) % 4
    assert np.array_equal(small.ring.ids[rows, 0], ids[-4:]) and small.totals.uses.sum() == 28


def slow_places(values, logits) -> list[int]:
    """Place of each expert by counting those that go before it; -1 for -inf."""
    def before(a: int, b: int) -> bool:
        return (-values[a], -logits[a], a) < (-values[b], -logits[b], b)

    E = range(len(values))
    return [-1 if values[e] == -np.inf else sum(before(other, e) for other in E) for e in E]


@pytest.mark.parametrize("routing", [
    ml.routing.Original(), ml.routing.CachePrior(penalty=0.5, keep_top=2), ml.routing.MaxRank(window=5, keep_top=1),
])
def test_the_ranking_is_that_of_the_last_token_before_and_after_the_policy(engine, routing):
    assert engine.ranking(0) is None
    engine.routing = routing
    moved = False
    for _ in engine.stream(PROMPT, max_new_tokens=25, stop_at_end=False):
        now, t = engine.telemetry.snapshot(), engine.telemetry
        for layer, state in enumerate(engine._core.experts.states):
            ranking = engine.ranking(layer)
            z, scores = now.logits[layer], np.zeros(8, np.float32)
            learned = state.route_state.copy()          # the range of this token is in it: take it out again
            learned[OWN:] -= [z.max() - z.min(), 1][: learned.size - OWN]
            resident = t.ring.resident[(now.token - 1) % len(t.ring.logits), layer]
            routing.rank(z, softmax(z[None])[0], 2, resident, learned, routing.vector(), scores)
            assert ranking.before.dtype == ranking.after.dtype == np.int16
            assert ranking.before.tolist() == slow_places(z, z)
            assert ranking.after.tolist() == slow_places(scores, z)
            assert set(np.nonzero((ranking.after >= 0) & (ranking.after < 2))[0]) == set(np.nonzero(now.used[layer])[0])
            moved |= ranking.before.tolist() != ranking.after.tolist()
    assert moved is routing.lossy


def test_a_ranking_knows_the_chosen_alone_where_the_model_routes_by_itself(engine):
    for state in engine._core.experts.states:
        state.set_routing(ml.routing.Original())
    walk_forced(engine, ids=[[6, 2]], gates=[[0.7, 0.2]])
    ranking = engine.ranking(1)
    assert ranking.before.tolist() == ranking.after.tolist() == [-1, -1, 1, -1, -1, -1, 0, -1]


def walk_forced(engine, ids, gates) -> None:
    """One token, of which only the choice is known."""
    t = engine.telemetry
    t.begin(1, 1)
    for layer, state in enumerate(engine._core.experts.states):
        walk(state, *forced(np.array(ids), np.array(gates, np.float32), 8), t.room(layer))
        t.routed(layer, 0.0)
        t.computed(layer, 0, 0.0, 0.0)
    t.end()


def test_a_ranking_of_a_layer_that_is_not_there_is_refused(engine):
    for layer in (-1, 3, "first"):
        with pytest.raises(SettingError, match="type one from 0 to 2"):
            engine.ranking(layer)


def test_rankings_asked_while_another_thread_generates_are_of_one_token(engine):
    """Ranks of two tokens mixed would hardly ever be a permutation that the trace knows."""
    done, seen = threading.Event(), []

    def watch() -> None:
        while not done.is_set():
            if (found := engine.ranking(2)) is not None:
                seen.append(tuple(np.nonzero((found.after >= 0) & (found.after < 2))[0]))

    thread = threading.Thread(target=watch)
    thread.start()
    for _ in engine.stream(PROMPT, max_new_tokens=60, stop_at_end=False):
        time.sleep(0.001)                       # or the watcher, on a core that it shares, might see one token only
    done.set()
    thread.join()
    assert set(seen) <= {tuple(np.sort(chosen)) for chosen in engine.trace.ids[:, 2]} and len(set(seen)) > 1


def test_a_digest_may_be_asked_at_any_time_and_is_that_of_the_trace(engine):
    for step in engine.stream(PROMPT, max_new_tokens=300, stop_at_end=False):
        if step.index % 70 == 0:
            assert engine.stats.digest == engine.trace.digest() == engine.telemetry.recorder.digest()
    assert len(engine.trace) == engine.stats.prefill.tokens + engine.stats.decode.tokens == engine.telemetry.token
    assert engine.stats.digest == engine.trace.digest()


def test_an_interrupt_while_a_token_is_entered_does_not_hold_readers_up(engine, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    engine.generate(PROMPT, max_new_tokens=3)
    token = engine.telemetry.token
    engine._ahead.join()                 # what compiles in the background enters a token, too
    monkeypatch.setattr("moe_lab.engine.telemetry.enter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, max_new_tokens=3)
    assert engine.telemetry.snapshot().token == token and not engine.busy


def test_only_a_step_is_explained(engine):
    engine.generate([5, 17, 3], max_new_tokens=2)
    with pytest.raises(SettingError, match="with a step of"):
        engine.explain(5)


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
