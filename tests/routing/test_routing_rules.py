"""The three rules of the paper, each against its own text and against its figures on random logits."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from layers import new_layer, random_logits, softmax

from moe_lab.kernels.belady import belady
from moe_lab.kernels.walk import walk
from moe_lab.kernels.walked import Walked
from moe_lab.routing import OWN, CachePrior, CumulativeThreshold, MaxRank, Original, RoutingPolicy


@functools.cache
def synthetic(E: int) -> tuple[np.ndarray, np.ndarray]:
    logits = random_logits(np.random.default_rng(2412), 4000, E)
    return logits, softmax(logits)


def walked(E: int, K: int, C: int, policy: RoutingPolicy) -> Walked:
    return walk(new_layer(E, K, C, policy), *synthetic(E))


def mass_kept(w: Walked) -> float:
    """Mean share of the original gate mass that the chosen experts hold."""
    return float(w.mass.mean())


# PAPER.md section 6: independent normal logits, 4,000 tokens, one layer, LRU, empty start
TABLE_32 = [
    (Original(), 0.500, 1.000, 1.000),
    (CachePrior(penalty=0.05), 0.420, 0.920, 0.995),
    (CachePrior(penalty=0.1), 0.338, 0.836, 0.980),
    (CachePrior(penalty=0.25), 0.175, 0.673, 0.912),
    (CachePrior(penalty=0.5), 0.127, 0.627, 0.871),
    (CachePrior(penalty=1), 0.125, 0.626, 0.870),
    (MaxRank(window=6), 0.298, 0.796, 0.952),
    (MaxRank(window=8), 0.186, 0.683, 0.904),
    (MaxRank(window=12), 0.128, 0.631, 0.873),
    (CumulativeThreshold(mass=0.5), 0.313, 0.810, 0.960),
    (CumulativeThreshold(mass=0.7), 0.144, 0.643, 0.882),
]


@pytest.mark.parametrize(("policy", "miss", "agreement", "mass"), TABLE_32, ids=lambda x: repr(x))
def test_the_synthetic_table_with_32_experts(policy: RoutingPolicy, miss: float, agreement: float, mass: float) -> None:
    found = walked(32, 4, 16, policy)
    assert 1 - found.hits.mean() == pytest.approx(miss, abs=0.01)
    assert (found.rank < 4).mean() == pytest.approx(agreement, abs=0.01)
    assert mass_kept(found) == pytest.approx(mass, abs=0.01)


@pytest.mark.parametrize(("E", "K", "C", "J", "penalty", "miss"), [
    (64, 8, 32, 2, 0, 0.504), (64, 8, 32, 2, 0.05, 0.409), (64, 8, 32, 2, 0.1, 0.314), (64, 8, 32, 2, 0.25, 0.143),
    (64, 8, 32, 2, 0.5, 0.124), (64, 8, 32, 2, 1, 0.124),
    (8, 2, 4, 1, 0, 0.500), (8, 2, 4, 1, 0.25, 0.321), (8, 2, 4, 1, 0.5, 0.262), (8, 2, 4, 1, 1, 0.248)])
def test_the_synthetic_table_with_64_and_8_experts(E: int, K: int, C: int, J: int, penalty: float, miss: float) -> None:
    found = walked(E, K, C, CachePrior(penalty=penalty, keep_top=J))
    assert 1 - found.hits.mean() == pytest.approx(miss, abs=0.01)


@pytest.mark.parametrize(("E", "K", "C", "miss"), [(32, 4, 16, 0.230), (64, 8, 32, 0.221), (8, 2, 4, 0.270)])
def test_beladys_bound_of_the_synthetic_table(E: int, K: int, C: int, miss: float) -> None:
    """The table's bound lets a token's experts leave right after it; ours for policies, which may not, is higher."""
    ids = walked(E, K, C, Original()).ids
    assert belady(ids, E, C, protected=False) / ids.size == pytest.approx(miss, abs=0.01)
    assert belady(ids, E, C) > belady(ids, E, C, protected=False)


def test_the_miss_rate_levels_off_at_the_forced_head() -> None:
    """Without structure only the head misses: J · (1 - C/E) / K."""
    assert 1 - walked(64, 8, 32, CachePrior(penalty=4, keep_top=2)).hits.mean() == pytest.approx(2 * 0.5 / 8, abs=0.01)


def test_littles_law_holds_up_to_the_fence_posts() -> None:
    """C = loads per token · lifetime, with lifetimes measured one by one."""
    found = walked(32, 4, 16, CachePrior(penalty=0.1))
    came: dict[int, int] = {}
    lifetimes = []
    for t in range(4000):
        for e, gone in zip(found.ids[t], found.evicted[t], strict=True):
            if gone >= 0:
                lifetimes.append(t - came.pop(int(gone)))
            came.setdefault(int(e), t)
    loads = (~found.hits).sum() / 4000
    assert loads * np.mean(lifetimes) == pytest.approx(16, rel=0.02)


def test_d_is_the_plain_mean_of_the_ranges(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 300, 16)
    state = new_layer(16, 4, 8, CachePrior())
    walk(state, logits, softmax(logits))
    ranges = (logits.max(1).astype(np.float64) - logits.min(1)).mean()
    assert state.route_state[OWN] / state.route_state[OWN + 1] == pytest.approx(ranges, rel=1e-12)


def test_d_of_the_first_token_is_its_own_range() -> None:
    """So the bonus at the first token is known: 0.5 · 4 lifts expert 3 (0 + 2) over expert 1 (1), not over 0 (4)."""
    logits = np.array([[4, 1, 0.5, 0]], dtype=np.float32)
    state = new_layer(4, 2, 2, CachePrior(penalty=0.5, keep_top=0))
    state.fill([3])
    assert walk(state, logits, softmax(logits)).ids.tolist() == [[0, 3]]
    state = new_layer(4, 2, 2, CachePrior(penalty=0.2, keep_top=0))      # 0 + 0.8 does not reach 1
    state.fill([3])
    assert walk(state, logits, softmax(logits)).ids.tolist() == [[0, 1]]


def test_cache_prior_follows_the_equations(rng: np.random.Generator) -> None:
    """z' = z + λ·D·m by the letter, step by step, in NumPy."""
    logits = random_logits(rng, 200, 16, skew=1)
    state = new_layer(16, 4, 8, CachePrior(penalty=0.3, keep_top=2))
    ranges = []
    for z in logits:
        ranges.append(float(z.max()) - float(z.min()))
        order = np.argsort(-z, kind="stable")
        mask = state.resident.copy()
        mask[order[:2]] = True
        prior = z + np.float32(0.3 * np.mean(ranges)) * mask
        expected = sorted(np.argsort(-prior, kind="stable")[:4])
        assert sorted(walk(state, z[None], softmax(z[None])).ids[0]) == expected


def test_at_full_strength_residents_go_in_rank_order() -> None:
    """Unless the token's range exceeds the mean: head, then residents, then the rest."""
    logits = np.array([[5, 4, 3, 2, 1, 0]], dtype=np.float32)
    state = new_layer(6, 3, 3, CachePrior(penalty=1, keep_top=1))
    state.fill([4, 5])
    assert walk(state, logits, softmax(logits)).ids.tolist() == [[0, 4, 5]]


def test_what_cache_prior_learned_survives_a_reset(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 50, 16)
    state = new_layer(16, 4, 8, CachePrior())
    walk(state, logits, softmax(logits))
    learned = state.route_state[OWN:].copy()
    state.reset()
    assert not state.resident.any()
    np.testing.assert_array_equal(state.route_state[OWN:], learned)
    state.reset(keep_routing_state=False)
    assert (state.route_state[OWN:] == 0).all()


def test_max_rank_takes_residents_from_its_window_only() -> None:
    logits = np.array([[9, 8, 7, 6, 5, 4, 3, 2]], dtype=np.float32)
    for window, expected in ((4, [0, 1, 3]), (5, [0, 3, 4]), (8, [0, 3, 4])):
        state = new_layer(8, 3, 4, MaxRank(window=window, keep_top=1))
        state.fill([3, 4, 7])
        assert walk(state, logits, softmax(logits)).ids.tolist() == [expected], window


def test_the_cumulative_window_is_the_smallest_that_holds_the_mass() -> None:
    logits = np.log(np.array([[0.4, 0.3, 0.1, 0.1, 0.06, 0.04]], dtype=np.float32))
    for mass, expected in ((0.35, [0, 1]), (0.75, [0, 1]), (0.85, [0, 3]), (0.93, [0, 3])):
        state = new_layer(6, 2, 3, CumulativeThreshold(mass=mass, keep_top=1))
        state.fill([3, 5])
        assert walk(state, logits, softmax(logits)).ids.tolist() == [expected], mass
