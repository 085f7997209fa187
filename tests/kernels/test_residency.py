"""What a layer knows: copies, changes of policy and of size, undoing."""

from __future__ import annotations

import numpy as np
import pytest
from layers import changing, new_layer, random_logits, softmax

import moe_lab as ml
from moe_lab.errors import BudgetError, PolicyError, SettingError
from moe_lab.eviction import FIFO, LFU, LRU, AgedLFU
from moe_lab.kernels.layout import EXPERTS, LAYER, OWN, SEED, SLOTS, TOP_K
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walk import walk
from moe_lab.kernels.walk_slow import walk_slow
from moe_lab.policy import Schedule
from moe_lab.routing import CachePrior, Original


def used(state: LayerState, rng: np.random.Generator, T: int = 50) -> LayerState:
    logits = random_logits(rng, T, state.E, skew=1)
    walk(state, logits, softmax(logits))
    return state


def test_a_layer_starts_empty_with_its_header_written() -> None:
    state = new_layer(16, 4, 8, CachePrior(), AgedLFU(), layer=5, seed=99)
    assert not state.resident.any()
    assert state.stats.own.shape == (1, 16)
    assert state.route_state.size == OWN + 2
    for head in (state.route_state, state.evict_state):
        assert [head[i] for i in (LAYER, SEED, TOP_K, SLOTS, EXPERTS)] == [5, 99, 4, 8, 16]


def test_fewer_slots_than_k_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(BudgetError, match="3 slots a layer are under the floor: one token uses 4 of 16 experts"):
        new_layer(16, 4, 3)
    with pytest.raises(BudgetError, match="under the floor"):
        new_layer(16, 4, 8).resize(3)


def test_more_slots_than_experts_are_as_many_as_experts() -> None:
    assert new_layer(16, 4, 100).C == 16


def test_a_copy_goes_its_own_way(rng: np.random.Generator) -> None:
    state = used(new_layer(16, 4, 8, CachePrior(), AgedLFU()), rng)
    before = changing(state)
    other = state.copy()
    assert changing(other) == before
    used(other, rng)
    assert changing(state) == before
    assert changing(other) != before


def test_a_layer_becomes_another_with_policies_slots_and_state_and_keeps_its_block(rng: np.random.Generator) -> None:
    state = used(new_layer(16, 4, 8, CachePrior(), AgedLFU()), rng)
    block, kept = state.block, state.copy()
    state.resize(4)
    state.set_routing(Original())
    state.set_eviction(LRU())
    used(state, rng)
    state.become(kept.copy())
    assert state.block is block and changing(state) == changing(kept)
    assert (state.C, state.routing, state.eviction) == (8, CachePrior(), AgedLFU())
    logits = random_logits(rng, 10, 16)
    np.testing.assert_array_equal(walk(state, logits, logits).ids, walk(kept, logits, logits).ids)


def test_another_policy_leaves_residents_and_uses_as_they_are(rng: np.random.Generator) -> None:
    state = used(new_layer(16, 4, 8, CachePrior(), AgedLFU()), rng)
    resident, uses, tick = state.resident.copy(), state.stats.uses.copy(), int(state.clock[0])
    state.set_eviction(LFU())
    state.set_routing(Original())
    np.testing.assert_array_equal(state.resident, resident)
    np.testing.assert_array_equal(state.stats.uses, uses)
    assert state.clock[0] == tick
    assert state.stats.own.shape == (0, 16)
    assert state.route_state.size == OWN


def test_a_new_parameter_keeps_what_the_policy_has_learned(rng: np.random.Generator) -> None:
    """Moving a slider must not forget D, nor how often experts were used."""
    state = used(new_layer(16, 4, 8, CachePrior(penalty=0.1), AgedLFU(half_life=64)), rng)
    learned, faded = state.route_state.copy(), state.stats.own.copy()
    state.set_routing(CachePrior(penalty=0.9))
    state.set_eviction(AgedLFU(half_life=8))
    np.testing.assert_array_equal(state.route_state, learned)
    np.testing.assert_array_equal(state.stats.own, faded)
    assert state.routing.penalty == 0.9


def test_a_new_parameter_acts_at_the_next_token(rng: np.random.Generator) -> None:
    state = used(new_layer(16, 4, 8), rng)
    state.set_routing(CachePrior(penalty=100, keep_top=0))
    logits = random_logits(rng, 1, 16)
    assert walk(state, logits, softmax(logits)).hits.all()


def test_a_policy_that_cannot_be_set_changes_nothing(rng: np.random.Generator) -> None:
    state = used(new_layer(16, 4, 8, layer=2), rng)
    routing, block, memory, resident = state.routing, state.block.copy(), state._memory, state.resident.copy()
    with pytest.raises(PolicyError, match="none for layer 2"):
        state.set_routing(CachePrior(penalty=[0.1, 0.2]))
    assert state._memory is memory
    assert (state.block == block).all()
    assert (state.resident == resident).all()
    assert state.routing is routing


def test_shrinking_evicts_the_lowest_keep_first(rng: np.random.Generator) -> None:
    state = used(new_layer(16, 4, 8), rng)
    oldest = sorted(np.nonzero(state.resident)[0], key=lambda e: state.stats.last_use[e])
    assert state.resize(5) == [int(e) for e in oldest[:3]]
    assert state.C == 5
    assert state.route_state[SLOTS] == state.evict_state[SLOTS] == 5
    assert sorted(np.nonzero(state.resident)[0]) == sorted(oldest[3:])


def test_growing_evicts_nobody_and_gives_room(rng: np.random.Generator) -> None:
    state = used(new_layer(16, 4, 4), rng)
    assert state.resize(16) == []
    used(state, rng)
    assert state.resident.sum() > 4


def test_reset_empties_and_forgets_uses(rng: np.random.Generator) -> None:
    state = used(new_layer(16, 4, 8, None, AgedLFU()), rng)
    state.reset()
    assert not state.resident.any()
    assert not any(column.any() for column in state.stats)
    assert state.clock[0] == 0


def test_fill_makes_experts_resident_in_the_order_of_arrival() -> None:
    state = new_layer(8, 2, 4, None, FIFO())
    state.fill([5, 3, 5, 1])
    assert sorted(np.nonzero(state.resident)[0]) == [1, 3, 5]
    assert state.resize(2) == [5]
    with pytest.raises(SettingError, match=r"do not fit: 2 of 2 slots are taken"):
        state.fill([0, 7])


def test_a_dropped_expert_is_not_resident_and_the_policy_is_told() -> None:
    def gone(expert, stats, state, params, now):
        stats.own[0, expert] += 1

    @ml.eviction.policy(left=gone, columns=1)
    def mine(expert, stats, state, params, now):
        return stats.last_use[expert]

    state = new_layer(8, 2, 4, None, mine())
    state.fill([5, 3])
    state.drop(5)
    state.drop(5)
    assert np.nonzero(state.resident)[0].tolist() == [3]
    assert state.stats.own[0, 5] == 1


def test_a_drop_cannot_fail() -> None:
    def gone(expert, stats, state, params, now):
        stats.own[0, expert] = 5
        raise ValueError("no")

    @ml.eviction.policy(left=gone, columns=1)
    def mine(expert, stats, state, params, now):
        return 0.0

    state = new_layer(8, 2, 4, None, mine())
    state.fill([5, 3])
    state.drop(5)
    assert np.nonzero(state.resident)[0].tolist() == [3]
    assert not state.stats.own.any()


def test_a_keep_that_fails_while_shrinking_changes_nothing() -> None:
    @ml.eviction.policy
    def no_number(expert, stats, state, params, now):
        return np.nan if expert == 3 else 1.0

    @ml.eviction.policy
    def failing(expert, stats, state, params, now):
        if expert == 3:
            raise ValueError("not this one")
        return 1.0

    for policy, said in ((no_number(), "returned NaN for expert 3"), (failing(), r"ValueError: not this one")):
        state = new_layer(8, 2, 4, None, policy)
        state.fill([1, 3, 5])
        before = changing(state)
        with pytest.raises(PolicyError, match=said):
            state.resize(2)
        assert changing(state) == before
        assert state.C == 4


def test_a_repr_says_how_full_it_is() -> None:
    assert repr(new_layer(8, 2, 4)) == "LayerState(layer 0: 0 of 4 slots, 8 experts, top-2, Original(), LRU(), tick 0)"


RAMP = Schedule({0: 0.0, 20: 0.4, 21: 0.0, 33: 0.8})
FORGET = Schedule({0: 1, 10: 4, 40: 32})


@pytest.mark.parametrize("routing", [CachePrior(penalty=RAMP), CachePrior(penalty=[0.9, 0.1, 0.5], keep_top=2)])
@pytest.mark.parametrize("eviction", [LRU(), AgedLFU(half_life=FORGET), AgedLFU(half_life=[1, 8, 64])])
def test_one_pass_under_a_schedule_is_the_same_tokens_one_by_one(rng, routing, eviction) -> None:
    """And as the slow twin, which asks the policy at every token; a resize between them sees the same numbers."""
    logits = random_logits(rng, 60, 16, skew=1)
    weights = softmax(logits)
    one, other, slow = (new_layer(16, 4, 7, routing, eviction, layer=2) for _ in range(3))
    for first, end, slots in ((0, 0, 7), (0, 37, 7), (37, 38, 5), (38, 60, 9)):
        walked = walk(one, logits[first:end], weights[first:end])
        twin = walk_slow(slow, logits[first:end], weights[first:end])
        single = [walk(other, logits[t : t + 1], weights[t : t + 1]) for t in range(first, end)]
        for name in ("ids", "hits", "evicted", "rank", "gates"):
            np.testing.assert_array_equal(getattr(walked, name), getattr(twin, name), err_msg=name)
            if single:
                rows = np.concatenate([getattr(each, name) for each in single])
                np.testing.assert_array_equal(getattr(walked, name), rows, err_msg=name)
        assert one.resize(slots) == other.resize(slots) == slow.resize(slots)
        assert changing(one) == changing(other)
    values = [*routing.values().values(), *eviction.values().values()]
    assert one.token == 60 and one.routing == routing
    assert one.steady is not any(isinstance(value, Schedule) for value in values)


def test_a_schedule_does_what_setting_each_number_in_its_turn_does(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 60, 16, skew=1)
    weights = softmax(logits)
    one, other = new_layer(16, 4, 7, CachePrior(penalty=RAMP), AgedLFU(half_life=FORGET)), new_layer(16, 4, 7)
    walked = walk(one, logits, weights)
    for first, end, penalty, half_life in ((0, 10, 0, 1), (10, 20, 0, 4), (20, 21, 0.4, 4), (21, 33, 0, 4),
                                           (33, 40, 0.8, 4), (40, 60, 0.8, 32)):
        other.set_routing(CachePrior(penalty=penalty))
        other.set_eviction(AgedLFU(half_life=half_life))
        np.testing.assert_array_equal(walk(other, logits[first:end], weights[first:end]).ids, walked.ids[first:end])
    assert changing(one) == changing(other)


def test_a_walk_that_fails_in_a_later_stretch_is_undone_from_the_first(rng: np.random.Generator) -> None:
    state = used(new_layer(16, 4, 7, CachePrior(penalty=RAMP), AgedLFU(half_life=FORGET)), rng, T=5)
    before, logits = changing(state), random_logits(rng, 50, 16)
    logits[44, 3] = np.nan
    with pytest.raises(PolicyError, match="NaN at token 44 of this walk"):
        walk(state, logits, softmax(logits))
    assert changing(state) == before
    good, again = random_logits(rng, 50, 16), state.copy()
    np.testing.assert_array_equal(walk(state, good, softmax(good)).ids, walk(again, good, softmax(good)).ids)


def test_an_emptied_layer_goes_on_with_its_schedule_unless_it_forgets_all(rng: np.random.Generator) -> None:
    state = used(new_layer(16, 4, 7, CachePrior(penalty=Schedule({0: 0.0, 10: 5.0}))), rng, T=30)
    state.reset()
    assert state.token == 30
    logits = random_logits(rng, 8, 16)
    state.fill([5, 6, 7])
    assert walk(state, logits, softmax(logits)).rank.max() > 4
    state.reset(keep_routing_state=False)
    assert state.token == 0
    state.fill([5, 6, 7])
    assert walk(state, logits, softmax(logits)).rank.max() < 4
