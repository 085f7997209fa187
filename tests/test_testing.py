"""check_policy: silent where a policy keeps its contract, and in words where it does not."""

from __future__ import annotations

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.errors import PolicyError
from moe_lab.eviction import EVICTION, OWN, noise
from moe_lab.policy import Policy
from moe_lab.routing import ROUTING, CachePrior
from moe_lab.testing import Checked, check_policy


@pytest.mark.parametrize("policy", [*ROUTING.values(), *EVICTION.values()], ids=lambda p: p.name)
def test_every_policy_of_the_tables_keeps_its_contract(policy: type[Policy]) -> None:
    checked = check_policy(policy)
    assert isinstance(checked, Checked)
    assert len(checked.checks) == 9
    assert not checked.notes
    assert repr(checked) == f"{policy()!r}: 9 checks hold"


def test_a_name_an_instance_and_a_policy_that_differs_by_layer_are_taken() -> None:
    assert check_policy("lru").policy.name == "lru"
    assert check_policy("max-rank").policy.name == "max-rank"
    assert check_policy(CachePrior(penalty=[0.1, 0.2])).policy == CachePrior(penalty=[0.1, 0.2])
    with pytest.raises(PolicyError, match="unknown eviction policy 'lruu'"):
        check_policy("lruu")
    with pytest.raises(PolicyError, match=r"put @ml\.eviction.policy above the function"):
        check_policy(lambda expert, stats, state, params, now: 0.0)


def broken(policy: type[Policy]) -> str:
    with pytest.raises(PolicyError) as caught:
        check_policy(policy)
    said = str(caught.value)
    assert said.startswith(f"policy {policy.name!r} breaks its contract:\n- ")
    return said


# --- routing that breaks it ----------------------------------------------------------------------------


def rank_nan(logits, weights, K, resident, state, params, scores):
    scores[:] = logits
    if resident.sum() > 3:
        scores[0] = np.nan


def rank_of_stale_scores(logits, weights, K, resident, state, params, scores):
    scores[1:] = logits[1:]


def rank_that_writes_logits(logits, weights, K, resident, state, params, scores):
    logits[0] += 1
    scores[:] = logits


def rank_that_writes_the_head_of_state(logits, weights, K, resident, state, params, scores):
    state[2] += 1
    scores[:] = logits


def rank_of_masked(logits, weights, K, resident, state, params, scores):
    for e in range(len(logits)):
        scores[e] = 50.0 if resident[e] else logits[e]


def rank_that_draws(logits, weights, K, resident, state, params, scores):
    scores[:] = logits
    scores[int(np.random.random() * len(logits))] = 100  # noqa: NPY002 - numba knows no Generator of its own


def rank_of_too_much_state(logits, weights, K, resident, state, params, scores):
    state[OWN] += 1
    scores[:] = logits


def rank_beyond_two_experts(logits, weights, K, resident, state, params, scores):
    scores[:] = logits
    scores[1] += 0.1


@pytest.mark.parametrize(("rank", "said"), [
    (rank_nan, "gave expert 0 the score NaN"), (rank_of_stale_scores, "rank left scores[0] as it was"),
    (rank_that_writes_logits, "rank changed logits"),
    (rank_that_writes_the_head_of_state, "rank changed the head of state"),
    (rank_of_masked, "whose logit is -inf, was used"), (rank_that_draws, "draw with ml.eviction.noise"),
    (rank_of_too_much_state, "IndexError"), (rank_beyond_two_experts, "few experts, and a cache of all: ")],
    ids=lambda x: getattr(x, "__name__", ""))
def test_a_routing_policy_is_told_what_is_wrong(rank: object, said: str) -> None:
    assert said in broken(ml.routing.policy(rank))


def test_a_policy_that_calls_itself_exact_must_be() -> None:
    class Quiet(ml.routing.RoutingPolicy):
        """Prefers residents."""

        @property
        def lossy(self) -> bool:
            return False

        @staticmethod
        def rank(logits, weights, K, resident, state, params, scores):
            scores[:] = logits + np.float32(0.5) * resident

    assert "lossy is False, yet ids at token" in broken(Quiet)


def test_the_ends_of_a_parameter_are_tried_and_named() -> None:
    @ml.routing.policy(divisor=ml.Parameter(1, 0, 2))
    def divided(logits, weights, K, resident, state, params, scores):
        scores[:] = logits / np.float32(params[0])

    said = broken(divided)
    assert "[with divided(divisor=0)]" in said


# --- eviction that breaks it ---------------------------------------------------------------------------


def steady(expert, stats, state, params, now):
    return 0.0


def keep_that_writes(expert, stats, state, params, now):
    stats.last_use[expert] = 0
    return 0.0


def keep_that_counts(expert, stats, state, params, now):
    state[OWN] += 1
    return state[OWN]


def keep_of_stale_uses(expert, stats, state, params, now):
    return 1.0 / (stats.uses[expert] - 1)


def touch_of_weight(expert, weight, hit, stats, state, params, now):
    stats.own[0, expert] += weight


def touch_that_writes(expert, weight, hit, stats, state, params, now):
    stats.uses[expert] = 0


def left_that_trusts(expert, stats, state, params, now):
    if stats.own[0, expert] == 0:
        raise ValueError("never met")


def touch_one(expert, weight, hit, stats, state, params, now):
    stats.own[0, expert] = 1


def own_first(expert, stats, state, params, now):
    return stats.own[0, expert]


@pytest.mark.parametrize(("keep", "hooks", "said"), [
    (keep_that_writes, {}, "keep changed stats.last_use"), (keep_that_counts, {"state_size": 1}, "keep of expert"),
    (keep_of_stale_uses, {}, "ZeroDivisionError"),
    (own_first, {"touch": touch_of_weight, "columns": 1}, "say needs={'weights'}"),
    (steady, {"touch": touch_that_writes}, "touch changed stats.uses"),
    (own_first, {"touch": touch_one, "left": left_that_trusts, "columns": 1}, "raised ValueError: never met")],
    ids=lambda x: getattr(x, "__name__", ""))
def test_an_eviction_policy_is_told_what_is_wrong(keep: object, hooks: dict, said: str) -> None:
    assert said in broken(ml.eviction.policy(**hooks)(keep))


def test_what_is_no_fault_is_a_note() -> None:
    def bare(expert, stats, state, params, now):
        return noise(0, 0, now, expert)

    checked = check_policy(ml.eviction.policy(bend=ml.Parameter(1, 0, 2))(bare))
    assert [note.split(";")[0] for note in checked.notes] == [
        "parameter 'bend' has no doc", "no docstring", "it cannot be pickled, so other processes cannot use it"]
    assert "note: no docstring" in repr(checked)
