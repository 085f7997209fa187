"""The learned policy: its inputs, its training, and that it learns what there is to learn."""

from __future__ import annotations

import time

import numpy as np
import pytest
from layers import TRACES, new_layer, random_ids

import moe_lab as ml
from moe_lab.errors import PolicyError, TraceError
from moe_lab.eviction import LRU, AgedLFU, EvictionPolicy, LearnedEviction
from moe_lab.eviction.learned import ESTIMATED, FAR, HIDDEN, INPUTS, JUST_USED, REFRESH, SIZE, estimate_all
from moe_lab.eviction.training import _gradients, samples
from moe_lab.kernels.replay import replay_layer


def hits(policy: EvictionPolicy, ids: np.ndarray, E: int, C: int) -> float:
    return float(replay_layer(ids, None, new_layer(E, ids.shape[1], C, None, policy)).mean())


def test_training_sees_what_the_policy_sees(rng: np.random.Generator) -> None:
    """The network's estimate for each waiting expert, from the samples and from the policy in mid-replay."""
    ids = random_ids(rng, 60, 1, 6)
    weights = rng.standard_normal(SIZE)
    inputs, _ = samples(ids[:, None], 6, 10)
    units = weights[INPUTS:].reshape(HIDDEN, INPUTS + 2)
    expected = inputs @ weights[:INPUTS] + np.maximum(inputs @ units[:, :INPUTS].T + units[:, -2], 0) @ units[:, -1]
    state, found = new_layer(6, 1, 6, None, LearnedEviction(weights=weights)), []
    for t in range(50):
        now, ahead = int(state.clock[0]) + 1, state.copy()
        estimate_all(ahead.stats, ahead.evict_state, weights)
        found += [-LearnedEviction.keep(e, ahead.stats, ahead.evict_state, weights, now)
                  for e in range(6) if state.stats.uses[e] and e != ids[t, 0]]
        replay_layer(ids[t : t + 1], None, state)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_estimates_are_made_before_room_is_and_no_later_than_every_16_tokens(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 400, 2, 9)
    state = new_layer(9, 2, 8, None, LearnedEviction(weights=rng.standard_normal(SIZE)))
    missed = hit = 0
    for t in range(400):
        hits = replay_layer(ids[t : t + 1], None, state)
        made = state.evict_state[ESTIMATED] == t + 1
        assert made or hits.all()
        assert t + 1 - state.evict_state[ESTIMATED] < REFRESH
        assert state.stats.own[FAR, ids[t, -1]] == JUST_USED        # who was used after the estimates leaves last
        missed, hit = missed + (not hits.all()), hit + (made and bool(hits.all()))
    assert missed and hit


def test_the_target_is_the_clipped_distance_to_the_next_use() -> None:
    ids = np.array([0, 1, 2, 0, 1, 3, 3, 3, 3, 3, 0, 3, 3, 3])[:, None, None]
    _, far = samples(ids, 4, 5)
    # waiting experts in order of token and id: 0 at 1; 0, 1 at 2; 1, 2 at 3; 0, 2 at 4; 0, 1, 2 at 5, 6, 7 and 8
    assert (2**far).round().tolist() == [2, 1, 2, 1, 5, 5, 5, 5, 5, 5, 4, 5, 5, 3, 5, 5, 2, 5, 5]


def test_the_gradients_are_those_of_the_loss(rng: np.random.Generator) -> None:
    weights = [rng.standard_normal(INPUTS), rng.standard_normal((INPUTS, HIDDEN)), rng.standard_normal(HIDDEN),
               rng.standard_normal(HIDDEN)]
    x, y = rng.standard_normal((40, INPUTS)), rng.standard_normal(40)

    def loss() -> float:
        a, w, b, c = weights
        return float(((x @ a + np.maximum(x @ w + b, 0) @ c - y) ** 2).mean() / 2)

    for values, gradient in zip(weights, _gradients(weights, x, y), strict=True):
        at = tuple(int(rng.integers(n)) for n in values.shape)
        before = values[at]
        values[at] = before + 1e-6
        above = loss()
        values[at] = before - 1e-6
        below = loss()
        values[at] = before
        assert gradient[at] == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-7)


def test_untrained_it_is_aged_lfu_with_a_half_life_of_16_tokens(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 600, 1, 20)
    np.testing.assert_array_equal(replay_layer(ids, None, new_layer(20, 1, 8, None, LearnedEviction())),
                                  replay_layer(ids, None, new_layer(20, 1, 8, None, AgedLFU(half_life=16))))


def test_it_learns_a_loop_that_recency_and_frequency_get_wrong() -> None:
    """Twelve experts in turn, six slots: whoever was used longest ago comes next; LRU never hits, its opposite does."""
    ids = np.tile(np.arange(12), 60)[:, None].astype(np.int32)
    trained = LearnedEviction.fit(ml.Trace(ids=ids[:360, None], experts=12))
    held = ids[360:]
    assert hits(LRU(), held, 12, 6) == 0
    assert hits(LearnedEviction(), held, 12, 6) < 0.05
    assert hits(trained, held, 12, 6) > 0.35            # the best possible is 5 of 11


def test_it_learns_that_a_burst_is_over(rng: np.random.Generator) -> None:
    """Half of the tokens use rare experts four times running and then not for long; the rest use steady ones."""
    tokens: list[int] = []
    while len(tokens) < 6000:
        tokens += [int(rng.integers(8))] if rng.random() < 0.8 else [int(rng.integers(8, 40))] * 4
    ids = np.array(tokens, dtype=np.int32)[:, None]
    trained = LearnedEviction.fit(ml.Trace(ids=ids[:3000, None], experts=40))
    held = ids[3000:]
    assert hits(trained, held, 40, 6) > max(hits(LRU(), held, 40, 6), hits(LearnedEviction(), held, 40, 6)) + 0.005


def test_fitting_is_repeatable_and_the_weights_belong_to_the_policy(rng: np.random.Generator) -> None:
    trace = ml.Trace(ids=random_ids(rng, 90, 2, 12)[:, None], experts=12)
    one, again = LearnedEviction.fit(trace, epochs=2), LearnedEviction.fit(trace, epochs=2)
    assert one == again
    assert hash(one) == hash(again)
    assert len(one.weights) == SIZE
    assert not LearnedEviction.parameters()             # no slider for them
    with pytest.raises(PolicyError, match="frozen"):
        one.weights = (0.0,)


def test_a_trace_too_short_to_learn_from_is_refused() -> None:
    with pytest.raises(TraceError, match="too short to learn from"):
        LearnedEviction.fit(ml.Trace(ids=np.zeros((3, 1, 1), dtype=np.int32), experts=4))


@pytest.mark.skipif(not TRACES.exists(), reason="recorded traces are not here")
def test_trained_on_one_half_of_a_recorded_text_it_serves_the_other() -> None:
    whole = ml.Trace.read(TRACES / "qwen3-30b-a3b.route.csv").decode
    first, second = (ml.Trace(ids=whole.ids[part], experts=whole.experts) for part in (slice(64), slice(64, 128)))
    began = time.perf_counter()
    trained = LearnedEviction.fit(first)
    assert time.perf_counter() - began < 60             # seconds, also on a busy machine
    lru, learned = (row.hit_rate for row in ml.replay(second, eviction=["lru", trained], cache=12))
    assert learned > lru + 0.03
