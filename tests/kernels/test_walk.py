"""The walk itself: its records, its inputs, its speed of calling."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from layers import changing, layers, new_layer, random_logits, softmax
from numba.core.errors import NumbaError

import moe_lab as ml
from moe_lab.errors import PolicyError, SettingError
from moe_lab.eviction import EVICTION, LFU
from moe_lab.kernels.layout import TOKEN
from moe_lab.kernels.route_one import RouteOne
from moe_lab.kernels.walk import walk, walk_kernel
from moe_lab.kernels.walk_slow import walk_slow
from moe_lab.kernels.walked import Walked
from moe_lab.routing import ROUTING, CachePrior
from moe_lab.spec import MOST_EXPERTS


@settings(max_examples=40)
@given(layers())
def test_every_pair_of_policies_walks_as_its_slow_twin(sizes: tuple[int, int, int, int]) -> None:
    E, K, C, seed = sizes
    rng = np.random.default_rng(seed)
    routing = list(ROUTING.values())[seed % len(ROUTING)]()
    eviction = list(EVICTION.values())[seed // 7 % len(EVICTION)]()
    logits = random_logits(rng, 25, E, skew=rng.random() * 2)
    fast, slow = (new_layer(E, K, C, routing, eviction, seed % 5, seed) for _ in range(2))
    one, other = walk(fast, logits, softmax(logits)), walk_slow(slow, logits, softmax(logits))
    for name in ("ids", "hits", "evicted", "rank", "gates"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=f"{routing} {eviction} {name}")
    for name in ("resident", "logits", "before", "scores"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name), err_msg=f"{routing} {eviction} {name}")
    for mine, twin in zip(fast.stats[:3], slow.stats[:3], strict=True):
        np.testing.assert_array_equal(mine, twin)


def test_a_walk_that_never_began_leaves_the_one_before_as_it_was(monkeypatch: pytest.MonkeyPatch,
                                                                  rng: np.random.Generator) -> None:
    state, logits = new_layer(8, 2, 4), random_logits(rng, 6, 8)
    walk(state, logits, softmax(logits))
    before = state.clock[0], state.stats.uses.tolist(), state.resident.tolist()
    monkeypatch.setattr("moe_lab.kernels.walk.walk_kernel", Mock(side_effect=NumbaError("not compiled")))
    with pytest.raises(NumbaError, match="not compiled"):
        walk(state, logits, softmax(logits))
    assert (state.clock[0], state.stats.uses.tolist(), state.resident.tolist()) == before


def test_hits_are_judged_before_anything_moves() -> None:
    """Expert 1 hits though expert 0 of the same token needs room; it is protected, 2 leaves."""
    state = new_layer(4, 2, 2)
    state.fill([1, 2])
    logits = np.array([[5, 4, 0, 0]], dtype=np.float32)
    walked = walk(state, logits, softmax(logits))
    assert walked.ids.tolist() == [[0, 1]]
    assert walked.hits.tolist() == [[False, True]]
    assert walked.evicted.tolist() == [[2, -1]]
    assert state.stats.last_use.tolist() == [3, 4, 2, 0]


def test_ranks_and_mass_tell_what_was_swapped() -> None:
    state = new_layer(4, 2, 2, CachePrior(penalty=1, keep_top=1))
    state.fill([3])
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], dtype=np.float32))
    walked = walk(state, logits, softmax(logits))
    assert walked.ids.tolist() == [[0, 3]]
    assert walked.rank.tolist() == [[0, 3]]
    assert walked.mass == pytest.approx(np.array([0.5 / 0.7]), rel=1e-6)


def test_gate_weights_need_not_follow_the_logits() -> None:
    """A selection bias ranks by one number and mixes by another: ids follow the logits, their order the weights."""
    logits = np.array([[3, 2, 1, 0]], dtype=np.float32)
    weights = np.array([[0.1, 0.2, 0.3, 0.4]], dtype=np.float32)
    walked = walk(new_layer(4, 2, 2), logits, weights)
    assert walked.ids.tolist() == [[1, 0]]
    assert walked.rank.tolist() == [[1, 0]]


def test_equal_gates_are_touched_in_the_order_of_ids() -> None:
    logits = np.zeros((1, 5), dtype=np.float32)
    assert walk(new_layer(5, 3, 3), logits, softmax(logits)).ids.tolist() == [[0, 1, 2]]


def test_states_count_tokens(rng: np.random.Generator) -> None:
    state = new_layer(8, 2, 4)
    logits = random_logits(rng, 7, 8)
    walk(state, logits, softmax(logits))
    assert state.route_state[TOKEN] == state.evict_state[TOKEN] == 7


def test_a_walk_over_no_tokens_is_nothing() -> None:
    state = new_layer(8, 2, 4)
    before = changing(state)
    none = np.zeros((0, 8), dtype=np.float32)
    assert walk(state, none, none).ids.shape == (0, 2)
    assert changing(state) == before


def test_other_arrays_are_taken_as_they_come_without_compiling_again(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 20, 8)
    weights = softmax(logits)
    expected = walk(new_layer(8, 2, 4), logits, weights).ids
    compiled = len(walk_kernel.signatures)
    frozen = logits.copy()
    frozen.flags.writeable = False
    for other in (logits.astype(np.float64), np.asfortranarray(logits), np.repeat(logits, 2, axis=0)[::2], frozen):
        np.testing.assert_array_equal(walk(new_layer(8, 2, 4), other, weights).ids, expected)
    walk(new_layer(8, 2, 4, CachePrior(), LFU()), logits, weights)
    assert len(walk_kernel.signatures) == compiled == 1


def test_arrays_of_another_size_are_refused(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 4, 8)
    with pytest.raises(SettingError, match=r"logits must be \(tokens, 9\), not \(4, 8\)"):
        walk(new_layer(9, 2, 4), logits, logits)
    with pytest.raises(SettingError, match="must have the same shape"):
        walk(new_layer(8, 2, 4), logits, logits[:3])
    with pytest.raises(SettingError, match="tokens, 8"):
        walk(new_layer(8, 2, 4), logits[0], logits[0])
    with pytest.raises(SettingError, match="out has room for"):
        walk(new_layer(8, 2, 4), logits, logits, Walked.empty(3, 2))


def test_a_walk_can_write_to_the_arrays_it_is_given(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 20, 8)
    weights = softmax(logits)
    expected, out, state = walk(new_layer(8, 2, 4), logits, weights), Walked.empty(1, 2), new_layer(8, 2, 4)
    for t in range(20):
        assert walk(state, logits[t : t + 1], weights[t : t + 1], out) is out
        assert out.ids[0].tolist() == expected.ids[t].tolist()
        assert out.evicted[0].tolist() == expected.evicted[t].tolist()


@pytest.mark.parametrize("name", ROUTING)
def test_numbers_that_cannot_be_ranked_are_the_models_fault_and_no_policy_sees_them(name: str) -> None:
    state, twin = (new_layer(8, 2, 4, ROUTING[name](), layer=3) for _ in range(2))
    logits = np.zeros((3, 8), dtype=np.float32)
    before = changing(state)
    for place, number, said in ((4, np.nan, "logits hold NaN"), (0, np.inf, "logits hold infinity"),
                                (slice(None), -np.inf, "logits mask every expert")):
        z = logits.copy()
        z[2, place] = number
        with pytest.raises(PolicyError, match=f"router's own {said} at token 2 of this walk, layer 3: the model"):
            walk(state, z, np.full_like(z, 0.1))
    weights = np.full_like(logits, 0.1)
    weights[2, 7] = np.nan
    with pytest.raises(PolicyError, match="router's own gate weights are not finite at token 2"):
        walk(state, logits, weights)
    with pytest.raises(ValueError, match="router's gate weights are not finite"):
        walk_slow(twin, logits, weights)
    assert changing(state) == before


def test_a_layer_with_more_experts_than_ranks_can_count_is_refused() -> None:
    state, none = new_layer(MOST_EXPERTS + 1, 1, 1), np.zeros((0, MOST_EXPERTS + 1), np.float32)
    for route in (lambda: walk(state, none, none),
                  lambda: RouteOne(state, none, none, Walked.empty(1, 1), np.zeros(1, np.int32))):
        with pytest.raises(SettingError, match="32,768 experts cannot be routed: 32,767 are possible"):
            route()


def test_a_policy_that_drops_experts_uses_fewer(rng: np.random.Generator) -> None:
    @ml.routing.policy(share=ml.Parameter(0.5, 0, 2))
    def drop_cold(logits, weights, K, resident, state, params, scores):
        """Skip a missing expert whose weight is below a share of the mean."""
        order = ml.routing.best(logits, K)
        mean = 0.0
        for e in order:
            mean += weights[e] / K
        scores[:] = -np.inf
        for e in order:
            if e == order[0] or resident[e] or weights[e] >= params[0] * mean:
                scores[e] = logits[e]

    logits = random_logits(rng, 200, 16, skew=1)
    fast, slow = new_layer(16, 4, 6, drop_cold(share=0.9)), new_layer(16, 4, 6, drop_cold(share=0.9))
    walked, twin = walk(fast, logits, softmax(logits)), walk_slow(slow, logits, softmax(logits))
    np.testing.assert_array_equal(walked.ids, twin.ids)
    used = (walked.ids >= 0).sum(1)
    assert 1 <= used.min() < used.max() == 4
    assert (walked.mass[used < 4] < 1).all()
    assert fast.clock[0] == used.sum()
    assert not walked.hits[walked.ids < 0].any()
