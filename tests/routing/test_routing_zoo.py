"""The rules beyond the paper's three, each against a plain reading of its text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from layers import layers, nearly_equal_logits, new_layer, random_logits, softmax

from moe_lab.errors import PolicyError
from moe_lab.kernels.walk import walk
from moe_lab.routing import (
    ROUTING,
    BoundedRegret,
    CachePrior,
    Cecar,
    DropCold,
    Original,
    Pruned,
    RoutingPolicy,
    Schedule,
    Swap,
    ToleranceSwap,
)

Chosen = Callable[[np.ndarray, np.ndarray, int, np.ndarray], set[int]]


def head(z: np.ndarray, K: int) -> list[int]:
    """The K best by falling logit, ties to the lower id."""
    return [int(e) for e in np.argsort(-z, kind="stable")[:K]]


def residents(z: np.ndarray, resident: np.ndarray, order: list[int]) -> list[int]:
    """Residents outside ``order`` by falling logit."""
    return [e for e in head(z, len(z)) if resident[e] and e not in order]


def pruned(z: np.ndarray, w: np.ndarray, K: int, resident: np.ndarray) -> set[int]:
    return set(head(z, max(1, K - 2)))


def best_swap(z: np.ndarray, w: np.ndarray, K: int, resident: np.ndarray) -> set[int]:
    order = head(z, K)
    chosen, others = set(order), residents(z, resident, order)
    for e in reversed(order[1:]):
        if not resident[e] and others:
            chosen = chosen - {e} | {others.pop(0)}
    return chosen


def drop_cold(z: np.ndarray, w: np.ndarray, K: int, resident: np.ndarray) -> set[int]:
    order = head(z, K)
    mean = np.mean([float(w[e]) for e in order])
    return {e for i, e in enumerate(order) if i < 1 or resident[e] or float(w[e]) >= 0.75 * mean}


def tolerance_swap(z: np.ndarray, w: np.ndarray, K: int, resident: np.ndarray) -> set[int]:
    order = head(z, K)
    chosen, others = set(order), residents(z, resident, order)
    for e in reversed(order[1:]):
        if not resident[e]:
            if not others or float(z[e]) - float(z[others[0]]) > 0.5:
                break
            chosen = chosen - {e} | {others.pop(0)}
    return chosen


def bounded_regret(z: np.ndarray, w: np.ndarray, K: int, resident: np.ndarray) -> set[int]:
    """The most swaps within the bound, by trying every number of them."""
    order = head(z, K)
    gone = [e for e in reversed(order[1:]) if not resident[e]]
    others = sorted(residents(z, resident, order), key=lambda e: (-w[e], e))
    whole = sum(float(w[e]) for e in order)
    for n in range(min(len(gone), len(others), 2), 0, -1):
        if sum(float(w[e]) for e in gone[:n]) - sum(float(w[e]) for e in others[:n]) <= 0.1 * whole:
            return set(order) - set(gone[:n]) | set(others[:n])
    return set(order)


RULES: list[tuple[RoutingPolicy, Chosen]] = [
    (Pruned(dropped=2), pruned), (Swap(), best_swap), (DropCold(), drop_cold),
    (ToleranceSwap(tolerance=0.5), tolerance_swap), (BoundedRegret(regret=0.1, most_swaps=2), bounded_regret)]


@pytest.mark.parametrize(("policy", "rule"), RULES, ids=lambda x: getattr(x, "name", None))
def test_a_rule_chooses_what_its_text_says(policy: RoutingPolicy, rule: Chosen, rng: np.random.Generator) -> None:
    logits = random_logits(rng, 400, 20, skew=0.5)
    weights = softmax(logits)
    state = new_layer(20, 5, 8, policy)
    changed = 0
    for z, w in zip(logits, weights, strict=True):
        expected = rule(z, w, 5, state.resident.copy())
        assert set(walk(state, z[None], w[None]).ids[0].tolist()) - {-1} == expected
        changed += expected != set(head(z, 5))
    assert changed > 40


@settings(max_examples=40)
@given(layers())
def test_bounded_regret_keeps_its_promise_for_every_token(sizes: tuple[int, int, int, int]) -> None:
    E, K, C, seed = sizes
    logits = random_logits(np.random.default_rng(seed), 40, E)
    for regret in (0.0, 0.03, 0.3):
        walked = walk(new_layer(E, K, C, BoundedRegret(regret=regret)), logits, softmax(logits))
        assert (walked.mass >= 1 - regret - 1e-5).all()
        assert (walked.ids >= 0).all()


def test_a_larger_regret_misses_less(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 1000, 32)
    misses = [(~walk(new_layer(32, 4, 16, BoundedRegret(regret=r)), logits, softmax(logits)).hits).mean()
              for r in (0, 0.05, 0.2, 1)]
    assert misses == sorted(misses, reverse=True)
    assert misses[0] > 0.45 and misses[-1] < 0.15


def test_each_swap_of_a_tolerance_is_within_it(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 300, 24)
    walked = walk(new_layer(24, 4, 12, ToleranceSwap(tolerance=0.25)), logits, softmax(logits))
    threshold = np.sort(logits, axis=1)[:, -4]
    swapped = walked.rank >= 4
    assert swapped.sum() > 20
    assert (np.take_along_axis(logits, walked.ids, 1) >= threshold[:, None] - 0.25)[swapped].all()


def test_swapping_misses_only_in_the_head_once_enough_is_resident(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 300, 24)
    for policy in (Swap(keep_top=1), Swap(keep_top=1, at_random="random")):
        hits = walk(new_layer(24, 4, 12, policy), logits, softmax(logits)).hits
        assert (~hits[20:]).sum(1).max() == 1


def test_a_random_swap_spreads_and_repeats(rng: np.random.Generator) -> None:
    logits = np.tile(np.arange(12, 0, -1, dtype=np.float32), (400, 1))
    policy = Swap(keep_top=0, at_random="random")

    def came_in(seed: int) -> np.ndarray:
        state = new_layer(12, 2, 8, policy, seed=seed)
        found = []
        for z in logits:
            state.resident[:] = False
            state.fill(range(4, 12))
            found.append(walk(state, z[None], softmax(z[None])).ids[0])
        return np.array(found)

    one = came_in(1)
    np.testing.assert_array_equal(one, came_in(1))
    assert (one != came_in(2)).any()
    counts = np.bincount(one.ravel(), minlength=12)
    assert counts[:4].sum() == 0
    assert (np.abs(counts[4:] - 100) < 5 * np.sqrt(100)).all()


def test_a_dropped_expert_is_not_replaced_and_its_weight_is_nobodys(rng: np.random.Generator) -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.05, 0.04, 0.06, 0.05]], dtype=np.float32))
    weights = np.exp(logits)
    state = new_layer(6, 4, 4, DropCold(share=0.75))
    state.fill([4])
    walked = walk(state, logits, weights)
    assert walked.ids.tolist() == [[0, 1, 4, -1]]
    assert walked.gates[0, 3] == 0
    assert walked.mass[0] == pytest.approx(0.86 / 0.91)


def test_one_expert_always_remains(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 50, 8)
    for policy in (Pruned(dropped=100), DropCold(share=50)):
        assert (walk(new_layer(8, 3, 4, policy), logits, softmax(logits)).ids[:, 0] == logits.argmax(1)).all()


def test_cecar_follows_its_formula_step_by_step(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 200, 16, skew=1)
    state = new_layer(16, 4, 8, Cecar(strength=0.8, recall=10))
    share = np.zeros(16)
    for z in logits:
        order = head(z, 4)
        distance = 1 / (share + 1e-3)
        furthest = distance[state.resident].max() if state.resident.any() else 1.0
        bonus = 0.8 * (float(z[order[0]]) - float(z[order[-1]])) * (1 - distance / furthest)
        scores = np.where(state.resident, z + bonus.astype(np.float32), z)
        expected = set(head(scores, 4))
        assert set(walk(state, z[None], softmax(z[None])).ids[0].tolist()) == expected
        share *= 0.5 ** 0.1
        share[list(expected)] += 1 - 0.5 ** 0.1


def test_cecar_misses_less_than_the_original(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 2000, 32, skew=0.5)
    misses = [(~walk(new_layer(32, 4, 12, policy), logits, softmax(logits)).hits).mean()
              for policy in (Original(), Cecar())]
    assert misses[1] < 0.7 * misses[0]


@settings(max_examples=30)
@given(layers())
def test_settings_that_ask_for_nothing_choose_as_the_original_does(sizes: tuple[int, int, int, int]) -> None:
    E, K, C, seed = sizes
    logits = nearly_equal_logits(np.random.default_rng(seed), 30, E)
    expected = walk(new_layer(E, K, C), logits, softmax(logits))
    for policy in (Pruned(dropped=0), DropCold(share=0), Cecar(strength=0), Swap(keep_top=64),
                   ToleranceSwap(keep_top=64), BoundedRegret(most_swaps=0), CachePrior(penalty=0, logit_range=3)):
        walked = walk(new_layer(E, K, C, policy), logits, softmax(logits))
        np.testing.assert_array_equal(walked.ids, expected.ids, err_msg=repr(policy))


# --- the range of Cache-Prior ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["running", "token", 2.5])
def test_the_penalty_is_a_share_of_the_range_that_was_asked_for(how: str | float, rng: np.random.Generator) -> None:
    logits = random_logits(rng, 200, 16, skew=1)
    state = new_layer(16, 4, 8, CachePrior(penalty=0.3, keep_top=2, logit_range=how))
    ranges: list[float] = []
    for z in logits:
        ranges.append(float(z.max()) - float(z.min()))
        D = {"running": np.mean(ranges), "token": ranges[-1]}.get(how, 2.5)
        mask = state.resident.copy()
        mask[head(z, 2)] = True
        expected = set(head(z + np.float32(0.3 * D) * mask, 4))
        assert set(walk(state, z[None], softmax(z[None])).ids[0].tolist()) == expected


def test_the_running_mean_goes_on_whatever_range_is_used(rng: np.random.Generator) -> None:
    """So that a change of the setting in mid-text finds a mean over all tokens."""
    logits = random_logits(rng, 50, 16)
    one, other = new_layer(16, 4, 8, CachePrior()), new_layer(16, 4, 8, CachePrior(logit_range="token"))
    for state in (one, other):
        walk(state, logits, softmax(logits))
    np.testing.assert_array_equal(one.route_state, other.route_state)


def test_the_range_is_written_only_where_it_was_chosen() -> None:
    assert repr(CachePrior()) == repr(CachePrior(logit_range="running")) == "CachePrior(penalty=0.2, keep_top=1)"
    assert repr(CachePrior(logit_range="token")) == "CachePrior(penalty=0.2, keep_top=1, logit_range='token')"
    assert CachePrior(logit_range="token") == CachePrior(logit_range=-1) != CachePrior()
    with pytest.raises(PolicyError, match="a number from 0 logits, or 'running', 'token', not 'mean'"):
        CachePrior(logit_range="mean")


# --- by layer, by token ------------------------------------------------------------------------------


def test_a_list_gives_every_layer_its_own_penalty(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 100, 16)
    policy = CachePrior(penalty=[0.0, 0.4], keep_top=2)
    for layer, plain in enumerate([CachePrior(penalty=0, keep_top=2), CachePrior(penalty=0.4, keep_top=2)]):
        one = walk(new_layer(16, 4, 8, policy.at(layer), layer=layer), logits, softmax(logits))
        other = walk(new_layer(16, 4, 8, plain, layer=layer), logits, softmax(logits))
        np.testing.assert_array_equal(one.ids, other.ids)


def test_walking_the_pieces_of_a_schedule_follows_it_token_by_token(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 120, 16)
    weights = softmax(logits)
    policy = CachePrior(penalty=Schedule({0: 0, 30: 0.2, 70: 0.6}), keep_top=1)
    whole, single = new_layer(16, 4, 8, policy.at(0)), new_layer(16, 4, 8, policy.at(0))
    ids = []
    for start, end in ((0, 50), (50, 120)):                     # two passes, cut where the schedule does not
        for a, b, now in policy.pieces(0, start, end - start):
            whole.set_routing(now)
            ids.append(walk(whole, logits[start + a : start + b], weights[start + a : start + b]).ids)
    for t in range(120):
        single.set_routing(policy.at(0, t))
        row = walk(single, logits[t : t + 1], weights[t : t + 1]).ids[0]
        np.testing.assert_array_equal(row, np.concatenate(ids)[t])
    np.testing.assert_array_equal(whole.route_state, single.route_state)


def test_the_table_holds_the_zoo() -> None:
    assert {"pruned", "swap", "drop-cold", "tolerance-swap", "bounded-regret", "cecar"} < set(ROUTING)
