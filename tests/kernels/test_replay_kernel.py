"""Replay of one layer: what it is given, what it needs."""

from __future__ import annotations

import numpy as np
import pytest
from layers import new_layer, random_ids

import moe_lab as ml
from moe_lab.errors import PolicyError, SettingError
from moe_lab.kernels.replay import replay_kernel, replay_layer


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


def test_a_policy_that_needs_logits_cannot_be_replayed(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 5, 2, 6)
    with pytest.raises(PolicyError, match="needs logits"):
        replay_layer(ids, np.ones(ids.shape, np.float32), new_layer(6, 2, 3, None, by_logits()))


def test_ids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match="from -1 to 5, not from 0 to 6"):
        replay_layer(np.array([[0, 6]], dtype=np.int32), None, new_layer(6, 2, 3))
    with pytest.raises(SettingError, match=r"ids must be \(tokens, 2\)"):
        replay_layer(np.array([[0, 1, 2]], dtype=np.int32), None, new_layer(6, 2, 3))
    with pytest.raises(SettingError, match="must have the shape of ids"):
        replay_layer(np.array([[0, 1]], dtype=np.int32), np.ones((2, 2), np.float32), new_layer(6, 2, 3))


def test_read_only_ids_are_replayed_without_compiling_again(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 20, 2, 6)
    expected = replay_layer(ids, None, new_layer(6, 2, 3))
    compiled = len(replay_kernel.signatures)
    ids.flags.writeable = False
    np.testing.assert_array_equal(replay_layer(ids, None, new_layer(6, 2, 3)), expected)
    np.testing.assert_array_equal(replay_layer(ids.astype(np.int64), None, new_layer(6, 2, 3)), expected)
    assert len(replay_kernel.signatures) == compiled
