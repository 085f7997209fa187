"""Replay of one layer: what it is given, what it needs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from layers import new_layer, random_ids, random_logits

import moe_lab as ml
from moe_lab.errors import PolicyError, SettingError
from moe_lab.eviction import LFU, MRS, TOKEN, AgedLFU, LeastStale
from moe_lab.kernels.replay import lacks, misses_by_window, replay_kernel, replay_layer
from moe_lab.kernels.walk_slow import replay_slow
from moe_lab.policy import Schedule


def weigh(expert, weight, hit, stats, state, params, now):
    stats.own[0, expert] += weight


@ml.eviction.policy(touch=weigh, columns=1, needs=["weights"])
def by_weight(expert, stats, state, params, now):
    """The expert with the least gate weight so far leaves."""
    return stats.own[0, expert]


def seen(logits, stats, state, params, now):
    stats.own[0, 0] += 1


@ml.eviction.policy(token=seen, columns=1)
def by_logits(expert, stats, state, params, now):
    """Needs logits."""
    return stats.own[0, expert]


def test_weights_reach_the_touch_hook(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 30, 2, 6)
    weights = rng.random(ids.shape).astype(np.float32)
    state = new_layer(6, 2, 3, None, by_weight())
    replay_layer(ids, weights, state)
    np.testing.assert_allclose(state.stats.own[0], np.bincount(ids.ravel(), weights.ravel(), minlength=6), rtol=1e-6)


def test_a_policy_that_needs_weights_is_refused_without_them(rng: np.random.Generator) -> None:
    with pytest.raises(PolicyError, match="'by-weight' needs weights, which this trace does not hold"):
        replay_layer(random_ids(rng, 5, 2, 6), None, new_layer(6, 2, 3, None, by_weight()))


def test_a_policy_that_needs_logits_is_refused_without_them(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 5, 2, 6)
    with pytest.raises(PolicyError, match="needs logits"):
        replay_layer(ids, np.ones(ids.shape, np.float32), new_layer(6, 2, 3, None, by_logits()))


@pytest.mark.parametrize("policy", [MRS(), by_logits()])
def test_recorded_logits_reach_the_token_hook(policy: ml.eviction.EvictionPolicy, rng: np.random.Generator) -> None:
    ids, logits = random_ids(rng, 60, 2, 9), random_logits(rng, 60, 9).astype(np.float16)
    fast, slow = new_layer(9, 2, 4, None, policy), new_layer(9, 2, 4, None, policy)
    np.testing.assert_array_equal(replay_layer(ids, None, fast, logits), replay_slow(slow, ids, None, logits))
    np.testing.assert_allclose(fast.stats.own, slow.stats.own, rtol=1e-6)
    assert np.any(fast.stats.own)
    with pytest.raises(SettingError, match=r"logits \(60, 8\) must have the shape \(60, 9\)"):
        replay_layer(ids, None, fast, logits[:, :8])


@pytest.mark.parametrize(("number", "said"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_logits_that_cannot_be_ranked_are_shown_to_no_policy(number: float, said: str) -> None:
    late = MRS(mix=Schedule({0: 0.1, 3: 0.5}))              # settled in two stretches
    ids, logits = np.tile(np.arange(2, dtype=np.int32), (6, 1)), np.zeros((6, 9), np.float32)
    replay_layer(ids, None, new_layer(9, 2, 4, None, LFU()), np.full_like(logits, number))
    logits[:, 8] = -np.inf                                  # masked: as it should be
    replay_layer(ids, None, new_layer(9, 2, 4, None, late), logits)
    logits[5, 1] = number
    state = new_layer(9, 2, 4, None, late, layer=2)
    with pytest.raises(PolicyError, match=f"router's own logits hold {said} at token 5 of this replay, layer 2"):
        replay_layer(ids, None, state, logits)
    assert not state.resident.any()
    with pytest.raises(ValueError, match=f"logits hold {said}"):
        replay_slow(new_layer(9, 2, 4, None, late), ids, None, logits)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_token_of_several_rows_counts_once(rows: int, rng: np.random.Generator) -> None:
    ids = random_ids(rng, 60, 2, 9)
    fast, slow = new_layer(9, 2, 4, None, LeastStale(fresh=2)), new_layer(9, 2, 4, None, LeastStale(fresh=2))
    np.testing.assert_array_equal(replay_layer(ids, None, fast, rows=rows), replay_slow(slow, ids, rows=rows))
    assert fast.evict_state[TOKEN] == slow.evict_state[TOKEN] == 60 // rows


def test_what_a_policy_lacks_is_named() -> None:
    assert lacks(by_weight(), weights=False, logits=True) == "weights" and not lacks(by_weight(), True, False)
    assert lacks(MRS(), weights=True, logits=False) == "logits" and not lacks(LFU(), False, False)


def test_misses_are_counted_by_window(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 50, 3, 12, missing=0.2)
    hits = replay_layer(ids, None, new_layer(12, 3, 5))
    misses, waits = misses_by_window(ids, hits, 7)
    missed = (ids >= 0) & ~hits
    parts = [missed[at : at + 7] for at in range(0, 50, 7)]
    assert misses.tolist() == [int(part.sum()) for part in parts]
    assert waits.tolist() == [int(part.any(1).sum()) for part in parts]
    for other, window in ((hits[:49], 7), (hits[:, :2], 7), (hits, 0)):
        with pytest.raises(SettingError, match=r"must have the shape \(50, 3\) of the ids, and window="):
            misses_by_window(ids, other, window)


def test_ids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match="from -1 to 5, not from 0 to 6"):
        replay_layer(np.array([[0, 6]], dtype=np.int32), None, new_layer(6, 2, 3))
    with pytest.raises(SettingError, match="not from 0 to 4294967297"):       # would be expert 1 in 32 bits
        replay_layer(np.array([[0, 2**32 + 1]]), None, new_layer(6, 2, 3))
    with pytest.raises(SettingError, match=r"ids must be \(tokens, 2\)"):
        replay_layer(np.array([[0, 1, 2]], dtype=np.int32), None, new_layer(6, 2, 3))
    with pytest.raises(SettingError, match=r"weights \(2, 2\) must have the shape \(1, 2\)"):
        replay_layer(np.array([[0, 1]], dtype=np.int32), np.ones((2, 2), np.float32), new_layer(6, 2, 3))
    with pytest.raises(SettingError, match=r"must be distinct, not \[3, 3\] \(row 1\)"):
        replay_layer(np.array([[0, 1], [3, 3]]), None, new_layer(6, 2, 3))
    with pytest.raises(SettingError, match=r"ids must be whole numbers .* not float64"):
        replay_layer(np.array([[0.0, 1.9]]), None, new_layer(6, 2, 3))
    with pytest.raises(SettingError, match="rows=0 of one token must be 1 or more"):
        replay_layer(np.array([[0, 1]]), None, new_layer(6, 2, 3), rows=0)


def test_read_only_ids_are_replayed_without_compiling_again(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 20, 2, 6)
    expected = replay_layer(ids, None, new_layer(6, 2, 3))
    compiled = len(replay_kernel.signatures)
    ids.flags.writeable = False
    np.testing.assert_array_equal(replay_layer(ids, None, new_layer(6, 2, 3)), expected)
    np.testing.assert_array_equal(replay_layer(ids.astype(np.int64), None, new_layer(6, 2, 3)), expected)
    assert len(replay_kernel.signatures) == compiled


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("weighed", [True, False])
def test_a_replay_under_a_schedule_is_the_slow_twins_at_once_or_in_parts(rng, rows, weighed) -> None:
    policy = AgedLFU(half_life=Schedule({0: 1, 7: 2, 30: 64}))
    ids = random_ids(rng, 60 * rows, 3, 12)
    weights = rng.random(ids.shape).astype(np.float32) if weighed else None
    whole, parts, slow = (new_layer(12, 3, 5, None, policy) for _ in range(3))
    plain = new_layer(12, 3, 5, None, AgedLFU(half_life=1))
    hits = replay_layer(ids, weights, whole, rows=rows)
    np.testing.assert_array_equal(hits, replay_slow(slow, ids, weights, rows=rows))
    cuts = [0, rows, 8 * rows, 8 * rows, 60 * rows]
    found = [replay_layer(ids[a:b], None if weights is None else weights[a:b], parts, rows=rows)
             for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(hits, np.concatenate(found))
    assert whole.token == parts.token == 60
    assert (hits != replay_layer(ids, weights, plain, rows=rows)).any()
