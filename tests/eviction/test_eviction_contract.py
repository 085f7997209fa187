"""What every eviction policy must keep, whatever it decides: one suite for the whole table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from layers import layers, new_layer, random_ids, random_logits, softmax

from moe_lab.eviction import (
    ARC,
    EVICTION,
    FIFO,
    LFRU,
    LFU,
    LRU,
    MRS,
    S3FIFO,
    SLRU,
    AgedLFU,
    Clock,
    EvictionPolicy,
    LearnedEviction,
    LeastStale,
    Random,
)
from moe_lab.kernels.belady import belady
from moe_lab.kernels.replay import replay_layer
from moe_lab.kernels.walk import walk
from moe_lab.kernels.walk_slow import replay_slow, walk_slow
from moe_lab.routing import CachePrior
from moe_lab.testing import check_policy

SETTINGS: list[EvictionPolicy] = [LRU(), FIFO(), LFU(), AgedLFU(), AgedLFU(half_life=3), Random(),
                                  Clock(), LFRU(), LFRU(age_power=3), SLRU(), SLRU(favoured=0), S3FIFO(),
                                  S3FIFO(small=0.5), ARC(), LeastStale(), LeastStale(fresh=1), MRS(),
                                  LearnedEviction(), LearnedEviction(weights=np.sin(np.arange(61)))]
REPLAYED = [policy for policy in SETTINGS if not policy.needs]
"""Those that a trace of ids is enough for."""


def test_the_suite_covers_the_whole_table() -> None:
    assert {type(policy) for policy in SETTINGS} == set(EVICTION.values())


@pytest.mark.parametrize("policy", SETTINGS, ids=repr)
def test_the_public_check_finds_nothing(policy: EvictionPolicy) -> None:
    assert len(check_policy(policy).checks) == 9


@pytest.fixture(params=REPLAYED, ids=repr)
def policy(request: pytest.FixtureRequest) -> EvictionPolicy:
    return request.param


@pytest.mark.parametrize("policy", SETTINGS, ids=repr)
def test_the_walk_agrees_with_its_slow_twin(policy: EvictionPolicy, rng: np.random.Generator) -> None:
    logits = random_logits(rng, 80, 20, skew=1)
    fast, slow = (new_layer(20, 4, 9, CachePrior(penalty=0.1), policy, layer=3, seed=11) for _ in range(2))
    one, other = walk(fast, logits, softmax(logits)), walk_slow(slow, logits, softmax(logits))
    for name in ("ids", "gates", "hits", "evicted", "rank"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for mine, twin in zip(fast.stats, slow.stats, strict=True):
        np.testing.assert_allclose(mine, twin, rtol=1e-12)
    np.testing.assert_array_equal(fast.resident, slow.resident)
    np.testing.assert_array_equal(fast.clock, slow.clock)


@settings(max_examples=40)
@given(layers())
def test_a_replay_agrees_with_its_slow_twin(sizes: tuple[int, int, int, int]) -> None:
    E, K, C, seed = sizes
    ids = random_ids(np.random.default_rng(seed), 40, K, E, missing=0.1 if seed % 2 else 0.0)
    for policy in REPLAYED:
        fast, slow = new_layer(E, K, C, None, policy, seed=seed), new_layer(E, K, C, None, policy, seed=seed)
        np.testing.assert_array_equal(replay_layer(ids, None, fast), replay_slow(slow, ids), err_msg=repr(policy))
        np.testing.assert_array_equal(fast.resident, slow.resident)


@settings(max_examples=40)
@given(layers())
def test_belady_is_never_beaten(sizes: tuple[int, int, int, int]) -> None:
    E, K, C, seed = sizes
    ids = random_ids(np.random.default_rng(seed), 60, K, E, missing=0.1 if seed % 2 else 0.0)
    bound = belady(ids, E, C)
    for policy in REPLAYED:
        hits = replay_layer(ids, None, new_layer(E, K, C, None, policy, seed=seed))
        assert (ids >= 0).sum() - hits.sum() >= bound, policy


def test_a_replay_of_a_walk_has_the_same_hits(policy: EvictionPolicy, rng: np.random.Generator) -> None:
    """The engine and the simulator run the same functions, touch order and weights included."""
    logits = random_logits(rng, 200, 16, skew=1)
    walked = walk(new_layer(16, 4, 8, CachePrior(), policy, layer=2, seed=5), logits, softmax(logits))
    hits = replay_layer(walked.ids, walked.gates, new_layer(16, 4, 8, None, policy, layer=2, seed=5))
    np.testing.assert_array_equal(hits, walked.hits)


def test_slots_are_never_exceeded_and_experts_of_a_token_protect_each_other(policy: EvictionPolicy,
                                                                             rng: np.random.Generator) -> None:
    state = new_layer(12, 4, 5, None, policy)
    for row in random_ids(rng, 200, 4, 12):
        replay_layer(row[None], None, state)
        assert state.resident.sum() <= 5
        assert state.resident[row].all()


def test_with_all_experts_resident_only_first_uses_miss(policy: EvictionPolicy, rng: np.random.Generator) -> None:
    ids = random_ids(rng, 100, 3, 10)
    hits = replay_layer(ids, None, new_layer(10, 3, 10, None, policy))
    assert (~hits).sum() == len(np.unique(ids))


def test_with_k_slots_a_repeated_token_hits(policy: EvictionPolicy) -> None:
    hits = replay_layer(np.array([[3, 1], [1, 3], [0, 1]], dtype=np.int32), None, new_layer(4, 2, 2, None, policy))
    assert hits.tolist() == [[False, False], [True, True], [False, True]]


def test_a_replay_in_pieces_is_a_replay(policy: EvictionPolicy, rng: np.random.Generator) -> None:
    ids = random_ids(rng, 90, 3, 12)
    whole = replay_layer(ids, None, new_layer(12, 3, 5, None, policy))
    state = new_layer(12, 3, 5, None, policy)
    pieces = [replay_layer(ids[a:b], None, state) for a, b in ((0, 1), (1, 40), (40, 40), (40, 90))]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))


def test_hits_and_misses_are_all_uses(policy: EvictionPolicy, rng: np.random.Generator) -> None:
    ids = random_ids(rng, 90, 3, 12, missing=0.2)
    state = new_layer(12, 3, 5, None, policy)
    hits = replay_layer(ids, None, state)
    assert not hits[ids < 0].any()
    assert state.stats.uses.sum() == state.clock[0] == (ids >= 0).sum()
    np.testing.assert_array_equal(state.stats.uses, np.bincount(ids[ids >= 0], minlength=12))


def test_evicted_experts_leave_in_the_order_of_their_keep(policy: EvictionPolicy, rng: np.random.Generator) -> None:
    if isinstance(policy, S3FIFO):
        pytest.skip("which queue it takes from depends on the slots there are")
    state = new_layer(12, 2, 10, None, policy)
    replay_layer(random_ids(rng, 60, 2, 12), None, state)
    twin = state.copy()
    one_by_one = [gone for C in range(9, 3, -1) for gone in twin.resize(C)]
    assert state.resize(4) == one_by_one
    assert state.resident.sum() == 4
