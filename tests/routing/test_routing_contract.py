"""What every routing policy must keep, whatever it decides: one suite for the whole table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from layers import layers, nearly_equal_logits, new_layer, random_logits, softmax

from moe_lab.kernels.walk import walk
from moe_lab.kernels.walk_slow import walk_slow
from moe_lab.routing import (
    ROUTING,
    BoundedRegret,
    CachePrior,
    Cecar,
    CumulativeThreshold,
    DropCold,
    MaxRank,
    Original,
    Pruned,
    RoutingPolicy,
    Swap,
    ToleranceSwap,
)
from moe_lab.testing import check_policy

SETTINGS: list[RoutingPolicy] = [
    Original(), CachePrior(penalty=0), CachePrior(penalty=0.1), CachePrior(penalty=2.5, keep_top=2),
    CachePrior(penalty=0.5, keep_top=0), MaxRank(window=1), MaxRank(window=6, keep_top=2),
    MaxRank(window=100, keep_top=0),
    CumulativeThreshold(mass=0), CumulativeThreshold(mass=0.6), CumulativeThreshold(mass=0.9, keep_top=3),
    CachePrior(penalty=0.3, logit_range="token"), CachePrior(penalty=0.3, logit_range=4.0),
    Pruned(), Pruned(dropped=3), DropCold(), DropCold(share=2, keep_top=2), Swap(),
    Swap(keep_top=0, at_random="random"),
    ToleranceSwap(), ToleranceSwap(tolerance=4, keep_top=0), BoundedRegret(), BoundedRegret(regret=1, keep_top=0),
    Cecar(), Cecar(strength=2, keep_top=2)]
FEWER = (Pruned, DropCold)
"""They may use fewer than K experts."""
GRADED = (Pruned, Cecar)
"""They choose otherwise than the model's router even where everything is resident."""


def test_the_suite_covers_the_whole_table() -> None:
    assert {type(policy) for policy in SETTINGS} == set(ROUTING.values())


@pytest.mark.parametrize("policy", SETTINGS, ids=repr)
def test_the_public_check_finds_nothing(policy: RoutingPolicy) -> None:
    assert len(check_policy(policy).checks) == 9


@pytest.fixture(params=SETTINGS, ids=repr)
def policy(request: pytest.FixtureRequest) -> RoutingPolicy:
    return request.param


def test_the_kernel_agrees_with_its_slow_twin(policy: RoutingPolicy, rng: np.random.Generator) -> None:
    logits = random_logits(rng, 60, 20, skew=1)
    fast, slow = new_layer(20, 4, 9, policy), new_layer(20, 4, 9, policy)
    one, other = walk(fast, logits, softmax(logits)), walk_slow(slow, logits, softmax(logits))
    for name in ("ids", "gates", "hits", "evicted", "rank"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    np.testing.assert_allclose(one.mass, other.mass, rtol=1e-6)
    np.testing.assert_allclose(fast.route_state, slow.route_state, rtol=1e-12)


def test_k_distinct_experts_are_used_unless_the_policy_uses_fewer(policy: RoutingPolicy,
                                                                  rng: np.random.Generator) -> None:
    logits = random_logits(rng, 100, 16)
    ids = walk(new_layer(16, 4, 8, policy), logits, softmax(logits)).ids
    assert (ids >= 0).all() != isinstance(policy, FEWER)
    assert (ids[:, 0] >= 0).all()
    assert all(len(set(row)) == len(row) for row in (row[row >= 0].tolist() for row in ids))


def test_gates_are_the_models_own_weights_in_falling_order(policy: RoutingPolicy, rng: np.random.Generator) -> None:
    logits = random_logits(rng, 100, 16)
    weights = softmax(logits)
    walked = walk(new_layer(16, 4, 8, policy), logits, weights)
    own = np.where(walked.ids >= 0, np.take_along_axis(weights, walked.ids.clip(0), 1), 0)
    np.testing.assert_array_equal(walked.gates, own)
    assert (np.diff(walked.gates, axis=1) <= 0).all()


def test_logits_and_weights_are_left_alone(policy: RoutingPolicy, rng: np.random.Generator) -> None:
    logits = random_logits(rng, 30, 16)
    weights = softmax(logits)
    before = logits.copy(), weights.copy()
    walk(new_layer(16, 4, 8, policy), logits, weights)
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(weights, before[1])


def test_with_everything_resident_the_choice_is_the_original_one(policy: RoutingPolicy,
                                                                 rng: np.random.Generator) -> None:
    if isinstance(policy, GRADED):
        pytest.skip("it does not, see GRADED")
    logits = random_logits(rng, 100, 16)
    state = new_layer(16, 4, 16, policy)
    state.fill(range(16))
    walked = walk(state, logits, softmax(logits))
    original = walk(new_layer(16, 4, 16), logits, softmax(logits))
    np.testing.assert_array_equal(walked.ids, original.ids)
    assert walked.hits.all()
    assert (walked.mass == 1).all()


def test_an_empty_start_is_not_a_full_one(rng: np.random.Generator) -> None:
    """The bonus is uniform only where everything is resident from the start."""
    logits = random_logits(rng, 20, 16)
    walked = walk(new_layer(16, 4, 16, CachePrior(penalty=1)), logits, softmax(logits))
    original = walk(new_layer(16, 4, 16), logits, softmax(logits))
    assert (walked.ids != original.ids).any()


@settings(max_examples=30)
@given(layers())
def test_in_pieces_a_text_is_routed_as_in_one(sizes: tuple[int, int, int, int]) -> None:
    E, K, C, seed = sizes
    rng = np.random.default_rng(seed)
    logits = random_logits(rng, 40, E, skew=1) if seed % 2 else nearly_equal_logits(rng, 40, E)
    weights = softmax(logits)
    for policy in SETTINGS:
        whole_state, state = new_layer(E, K, C, policy), new_layer(E, K, C, policy)
        whole = walk(whole_state, logits, weights)
        cuts = np.sort(rng.integers(0, 41, 4))
        bounds = [0, *cuts, 40] if seed % 3 else range(41)
        pieces = [walk(state, logits[a:b], weights[a:b]) for a, b in zip(bounds, list(bounds)[1:], strict=False)]
        for name in whole._fields:
            np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(p, name) for p in pieces]))
        assert (state.resident == whole_state.resident).all()
        np.testing.assert_array_equal(state.route_state, whole_state.route_state)


@settings(max_examples=50)
@given(layers())
def test_nearly_equal_logits_are_ordered_as_the_slow_twin_orders_them(sizes: tuple[int, int, int, int]) -> None:
    E, K, C, seed = sizes
    logits = nearly_equal_logits(np.random.default_rng(seed), 12, E)
    for policy in SETTINGS:
        one = walk(new_layer(E, K, C, policy), logits, softmax(logits))
        other = walk_slow(new_layer(E, K, C, policy), logits, softmax(logits))
        np.testing.assert_array_equal(one.ids, other.ids, err_msg=repr(policy))
        np.testing.assert_array_equal(one.rank, other.rank, err_msg=repr(policy))


@settings(max_examples=50)
@given(layers())
def test_the_head_is_always_used(sizes: tuple[int, int, int, int]) -> None:
    """top-J at every strength, beyond 1 too, and with logits one unit in the last place apart."""
    E, K, C, seed = sizes
    logits = nearly_equal_logits(np.random.default_rng(seed), 30, E)
    order = np.argsort(-logits, axis=1, kind="stable")
    for policy in (Swap(keep_top=2), DropCold(share=9, keep_top=2), BoundedRegret(regret=1, keep_top=2),
                   ToleranceSwap(tolerance=99, keep_top=2), Cecar(keep_top=2),
                   CachePrior(penalty=1, keep_top=2), CachePrior(penalty=1000, keep_top=2),
                   MaxRank(window=64, keep_top=2), CumulativeThreshold(mass=1, keep_top=2)):
        ids = walk(new_layer(E, K, C, policy), logits, softmax(logits)).ids
        for j in range(min(2, K)):
            assert (ids == order[:, j : j + 1]).any(1).all(), policy


@settings(max_examples=50)
@given(layers())
def test_settings_that_ask_for_nothing_are_the_original_routing(sizes: tuple[int, int, int, int]) -> None:
    """λ = 0, M = K and p → 0, with equal and nearly equal logits."""
    E, K, C, seed = sizes
    logits = nearly_equal_logits(np.random.default_rng(seed), 30, E)
    expected = walk(new_layer(E, K, C), logits, softmax(logits))
    for policy in (CachePrior(penalty=0), CachePrior(penalty=0, keep_top=0), MaxRank(window=K), MaxRank(window=1),
                   CumulativeThreshold(mass=0), CumulativeThreshold(mass=1e-9), CachePrior(keep_top=K),
                   MaxRank(keep_top=K)):
        walked = walk(new_layer(E, K, C, policy), logits, softmax(logits))
        for name in walked._fields:
            np.testing.assert_array_equal(getattr(walked, name), getattr(expected, name), err_msg=f"{policy} {name}")


def test_masked_experts_are_never_used(policy: RoutingPolicy, rng: np.random.Generator) -> None:
    """Routers with groups mask with -inf; a mask must not poison the range either."""
    logits = random_logits(rng, 50, 16)
    logits[:, ::2] = -np.inf
    walked = walk(new_layer(16, 4, 8, policy), logits, softmax(logits))
    assert (walked.ids[walked.ids >= 0] % 2 == 1).all()
    assert np.isfinite(walked.mass).all()


def test_fewer_experts_than_k_are_used_where_the_router_leaves_fewer(policy: RoutingPolicy) -> None:
    if isinstance(policy, FEWER):
        pytest.skip("it may use fewer still")
    logits = np.full((2, 8), -np.inf, dtype=np.float32)
    logits[:, [2, 5]] = [1.0, 3.0]
    walked = walk(new_layer(8, 4, 4, policy), logits, softmax(logits))
    assert walked.ids.tolist() == [[5, 2, -1, -1]] * 2
    assert walked.gates[:, 2:].tolist() == [[0, 0]] * 2
    assert walked.hits.tolist() == [[False] * 4, [True, True, False, False]]
    assert walked.rank.tolist() == [[0, 1, -1, -1]] * 2
    assert walked.mass.tolist() == [1, 1]
