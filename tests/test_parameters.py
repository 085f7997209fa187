"""What a parameter may be set to: a number, a word, a list by layer, a schedule over tokens, a learned table."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.errors import PolicyError
from moe_lab.parameters import Parameter, Schedule, Table
from moe_lab.policy import check_layers
from moe_lab.routing import CachePrior, MaxRank


def test_a_list_is_one_number_a_layer() -> None:
    policy = CachePrior(penalty=[0.1, 0.2, 0.3], keep_top=(1, 2, 1))
    assert [policy.at(layer) for layer in range(3)] == [
        CachePrior(penalty=0.1), CachePrior(penalty=0.2, keep_top=2), CachePrior(penalty=0.3)]
    assert policy == CachePrior(penalty=np.array([0.1, 0.2, 0.3]), keep_top=[1, 2, 1])
    assert repr(policy) == "CachePrior(penalty=[0.1, 0.2, 0.3], keep_top=[1, 2, 1])"
    assert policy.span("penalty") == (0.1, 0.3)


def test_a_schedule_holds_from_its_tokens_on() -> None:
    policy = CachePrior(penalty=Schedule({0: 0, 100: 0.25, 500: 0.5}))
    assert [policy.at(0, token).penalty for token in (0, 99, 100, 499, 500, 10**6)] == [0, 0, 0.25, 0.25, 0.5, 0.5]
    assert repr(policy) == "CachePrior(penalty=Schedule({0: 0, 100: 0.25, 500: 0.5}), keep_top=1)"
    assert eval(repr(policy), {"CachePrior": CachePrior, "Schedule": Schedule}) == policy


def test_pieces_cover_all_tokens_and_change_only_where_the_schedule_does() -> None:
    policy = CachePrior(penalty=Schedule({0: 0.1, 10: 0.2, 20: 0.3}), keep_top=[1, 2])
    assert [(a, b, p.penalty, p.keep_top) for a, b, p in policy.pieces(layer=1, token=5, tokens=20)] == [
        (0, 5, 0.1, 2), (5, 15, 0.2, 2), (15, 20, 0.3, 2)]
    assert [(a, b) for a, b, _ in policy.pieces(0, 10, 10)] == [(0, 10)]
    assert list(CachePrior().pieces(0, 7, 3)) == [(0, 3, CachePrior())]


def test_what_differs_is_never_taken_for_one_number() -> None:
    for value in ([0.1, 0.2], Schedule({0: 0.1})):
        policy = CachePrior(penalty=value)
        assert not policy.plain
        with pytest.raises(PolicyError, match=r"differs by layer or token; type policy\.at\(layer, token\)\.vector"):
            policy.vector()
    assert CachePrior().at(3, 5) is not None and CachePrior().plain


def test_a_layer_without_a_number_is_told_how_many_there_are() -> None:
    with pytest.raises(PolicyError, match="has 2 numbers, for layers 0 to 1; there is none for layer 2"):
        CachePrior(penalty=[0.1, 0.2]).at(2)


def test_a_list_must_have_a_number_for_each_layer_and_no_more() -> None:
    for policy in (CachePrior(), CachePrior(penalty=[0.1, 0.2, 0.3]), CachePrior(penalty=Schedule({0: 1, 9: 2}))):
        check_layers(policy, 3)
    for numbers, typed in (([0.1, 0.2], "penalty=[0.1, 0.2, 0.2]"), ([0.4] * 4, "penalty=[0.4, 0.4, 0.4]")):
        said = f"the trace has 3 MoE layers; type one number for each, such as {typed}, or one for all"
        with pytest.raises(PolicyError, match=re.escape(said)):
            check_layers(CachePrior(penalty=numbers), 3, "trace")


@pytest.mark.parametrize(("value", "said"), [
    ([0.1, -1], "penalty of CachePrior in layer 1 must be a number from 0, not -1"), ([], "not an empty list"),
    ([[0.1]], "in layer 0 must be a number"), (Schedule({0: 0, 9: "x"}), "from token 9 on must be a number from 0")])
def test_every_number_of_a_list_or_schedule_is_checked(value: object, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        CachePrior(penalty=value)
    with pytest.raises(PolicyError, match="in layer 1 must be a whole number"):
        MaxRank(window=[8, 8.5])


@pytest.mark.parametrize("steps", [{}, {5: 1.0}, {0: 1, -3: 1}, {0: 1, 2.5: 1}, [(0, 1), (0, 2)], 7, [1, 2, 3],
                                   [(0, 1, 2)], {0: 1, True: 2}, {"0": 1}])
def test_a_schedule_begins_with_token_0_and_counts_whole_tokens(steps: object) -> None:
    with pytest.raises(PolicyError, match="from token 0 on"):
        Schedule(steps)


def test_lossless_means_at_every_layer_and_token() -> None:
    assert not CachePrior(penalty=[0, 0]).lossy
    assert CachePrior(penalty=[0, 0.1]).lossy
    assert CachePrior(penalty=Schedule({0: 0, 50: 0.1})).lossy


def test_policies_that_differ_by_layer_are_compared_hashed_and_pickled() -> None:
    policy = CachePrior(penalty=Schedule({0: 0, 9: 1}), keep_top=[1, 2])
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert len({policy, policy.replace(), policy.replace(keep_top=1)}) == 2


def test_a_word_stands_for_its_number_and_is_written_back() -> None:
    @ml.routing.policy(mode=ml.Parameter(0, 0, 1, words={"off": 0, "on": 1}))
    def mine(logits, weights, K, resident, state, params, scores):
        scores[:] = logits

    assert mine(mode="on") == mine(mode=1)
    assert repr(mine(mode="on")) == "mine(mode='on')"
    assert repr(mine(mode=0.5)) == "mine(mode=0.5)"
    with pytest.raises(PolicyError, match="a number from 0 to 1, or 'off', 'on', not 'maybe'"):
        mine(mode="maybe")


def test_a_table_follows_the_parameters_and_has_no_slider() -> None:
    @ml.eviction.policy(bend=Parameter(2, 0, 9), table=Table([1.0, 2.0, 3.0], doc="what was learned"))
    def mine(expert, stats, state, params, now):
        return params[0] + params[3]

    policy = mine(table=np.arange(3), bend=4)
    assert policy.vector().tolist() == [4, 0, 1, 2]
    assert list(policy.parameters()) == ["bend"]
    assert policy.table == (0, 1, 2)
    assert policy != mine(bend=4)
    assert policy.replace(bend=1).table == (0, 1, 2)
    assert repr(mine()) == "mine(bend=2)"
    assert repr(policy).startswith("mine(bend=4, table=<3 numbers, ")
    assert len({policy, policy.replace(), mine()}) == 2


@pytest.mark.parametrize("values", [[1.0, 2.0], [1, 2, float("nan")], "abc", 5, [[1, 2, 3]], None, [True, True, False],
                                    ["1", "2", "3"], [1, 2, 10**400]])
def test_a_table_is_a_row_of_as_many_finite_numbers(values: object) -> None:
    @ml.eviction.policy(table=Table([0.0] * 3))
    def mine(expert, stats, state, params, now):
        return params[0]

    with pytest.raises(PolicyError, match="table of mine must be a row of 3 "):
        mine(table=values)
