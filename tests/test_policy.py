"""Policies as objects: names, parameters, equality, and how they are found."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.errors import PolicyError
from moe_lab.eviction import EVICTION, LRU, AgedLFU
from moe_lab.policy import Parameter, Schedule, resolve
from moe_lab.routing import ROUTING, CachePrior, MaxRank, Original

ALL = [*ROUTING.values(), *EVICTION.values()]


@pytest.mark.parametrize("kind", ALL)
def test_the_table_names_a_policy_as_it_names_itself(kind: type) -> None:
    table = ROUTING if kind.kind == "routing" else EVICTION
    assert table[kind.name] is kind
    assert kind.name == kind.name.lower()
    assert "_" not in kind.name


def test_the_tables_are_the_documented_ones() -> None:
    assert list(ml.ROUTING) == ["original", "cache-prior", "max-rank", "cumulative-threshold", "pruned", "swap",
                                "drop-cold", "tolerance-swap", "bounded-regret", "cecar"]
    assert list(ml.EVICTION) == ["lru", "fifo", "lfu", "aged-lfu", "random", "clock", "lfru", "slru", "s3-fifo", "arc",
                                 "mrs", "least-stale", "learned"]


@pytest.mark.parametrize("kind", ALL)
def test_every_parameter_is_documented_and_reaches_the_vector_in_order(kind: type) -> None:
    policy = kind()
    assert all(parameter.doc for parameter in kind.parameters().values())
    assert list(policy.values()) == list(kind.parameters())
    tables = [number for name in kind.tables() for number in getattr(policy, name)]
    assert policy.vector().tolist() == [*policy.values().values(), *tables]
    assert policy.vector().dtype == np.float64
    assert kind.summary()


@pytest.mark.parametrize("kind", ALL)
def test_a_repr_can_be_typed_back(kind: type) -> None:
    policy = kind()
    assert eval(repr(policy), {kind.__name__: kind}) == policy


@pytest.mark.parametrize("kind", ALL)
def test_a_policy_survives_pickling(kind: type) -> None:
    assert pickle.loads(pickle.dumps(kind())) == kind()


def test_a_repr_shows_the_values() -> None:
    assert repr(CachePrior(penalty=0.5, keep_top=1)) == "CachePrior(penalty=0.5, keep_top=1)"
    assert repr(LRU()) == "LRU()"


def test_policies_are_equal_by_class_and_values() -> None:
    assert CachePrior(penalty=0.25) == CachePrior(penalty=0.25)
    assert len({CachePrior(penalty=0.25), CachePrior(penalty=0.25), CachePrior(penalty=0.5)}) == 2
    assert LRU() != AgedLFU()


def test_a_policy_is_frozen_and_says_how_to_make_another() -> None:
    policy = CachePrior()
    with pytest.raises(PolicyError, match=r"frozen.*make a new one: CachePrior\(penalty=0.3\)"):
        policy.penalty = 0.3
    with pytest.raises(PolicyError, match="frozen"):
        policy.anything = 1
    assert policy == CachePrior()


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "0.5", None, True, 1j, np.True_,
                                   np.array(0.5), 10**400])
def test_a_penalty_that_is_no_number_from_0_is_refused(value: object) -> None:
    with pytest.raises(PolicyError, match="penalty of CachePrior must be a number from 0"):
        CachePrior(penalty=value)


def test_a_penalty_above_the_end_of_the_slider_is_allowed() -> None:
    assert CachePrior(penalty=3).penalty == 3
    assert CachePrior.parameters()["penalty"].high == 1


def test_a_value_outside_a_closed_range_is_refused() -> None:
    with pytest.raises(PolicyError, match="half_life of AgedLFU must be a number from 1 to 4096 uses, not 5000"):
        AgedLFU(half_life=5000)


def test_a_whole_number_is_asked_for_where_one_is_needed() -> None:
    assert isinstance(MaxRank(window=8).window, int)
    with pytest.raises(PolicyError, match="a whole number"):
        MaxRank(window=8.5)


def test_a_whole_number_beyond_31_bits_is_refused_where_the_range_is_open() -> None:
    assert MaxRank(window=2**31 - 1).window == 2**31 - 1
    for window in (2**31, 1e300):               # as an int of 64 bits the latter would be the least there is
        with pytest.raises(PolicyError, match=r"window of MaxRank must be .* below 2\^31"):
            MaxRank(window=window)


def test_numbers_of_numpy_are_numbers() -> None:
    assert CachePrior(penalty=np.float32(0.5), keep_top=np.int64(2)) == CachePrior(penalty=0.5, keep_top=2)
    parameter = Parameter(np.float32(0.5), np.int64(0), np.float32(1))
    assert [type(x) for x in (parameter.default, parameter.low, parameter.high)] == [float, int, float]
    assert Schedule({np.int32(0): np.float64(0.5)}).steps == ((0, 0.5),)


def test_an_unknown_parameter_is_refused_with_the_known_ones_nearest_first() -> None:
    with pytest.raises(PolicyError, match=r"no parameter 'keep'; it has 'keep_top', 'penalty'"):
        CachePrior(keep=1)
    with pytest.raises(PolicyError, match="it has none"):
        LRU(size=3)


def test_a_name_a_class_and_an_instance_mean_the_same_policy() -> None:
    assert {resolve(thing, EVICTION, "eviction") for thing in ("lru", LRU, LRU())} == {LRU()}


def test_an_unknown_name_is_refused_with_the_nearest_first() -> None:
    with pytest.raises(PolicyError, match="unknown eviction policy 'aged_lfu'; known are 'aged-lfu'"):
        resolve("aged_lfu", EVICTION, "eviction")
    with pytest.raises(PolicyError, match="unknown routing policy 'max-rnk'; known are 'max-rank'"):
        resolve("max-rnk", ROUTING, "routing")


def test_a_policy_of_the_other_kind_is_refused() -> None:
    with pytest.raises(PolicyError, match="'eviction', where one for routing is wanted"):
        resolve(LRU(), ROUTING, "routing")


def test_a_bare_function_is_told_about_the_decorator() -> None:
    with pytest.raises(PolicyError, match=r"put @ml\.eviction\.policy above the function"):
        resolve(lambda expert, stats, state, params, now: 0.0, EVICTION, "eviction")


def test_lossless_settings_are_known() -> None:
    assert not Original().lossy
    assert not CachePrior(penalty=0).lossy
    assert CachePrior(penalty=0.1).lossy
    assert MaxRank().lossy


def test_the_bare_decorator_makes_a_policy_class() -> None:
    @ml.eviction.policy
    def newest_first(expert, stats, state, params, now):
        """The newest leaves."""
        return -stats.arrived[expert]

    assert issubclass(newest_first, ml.eviction.EvictionPolicy)
    assert newest_first.name == "newest-first"
    assert repr(newest_first()) == "newest_first()"
    assert newest_first.summary() == "The newest leaves."


def test_the_decorator_takes_parameters_hooks_and_columns() -> None:
    def count(expert, weight, hit, stats, state, params, now):
        stats.own[0, expert] += 1

    @ml.eviction.policy(half_life=ml.Parameter(64, 1, 4096, unit="uses", doc="until half"), touch=count, columns=1)
    def mine(expert, stats, state, params, now):
        return stats.own[0, expert] / params[0]

    assert mine.columns == 1
    assert mine.touch is count
    assert mine(half_life=8).values() == {"half_life": 8.0}
    assert mine.parameters()["half_life"].unit == "uses"


def test_a_routing_decorator_takes_parameters() -> None:
    @ml.routing.policy(bonus=ml.Parameter(1, 0, 4), state_size=3)
    def nudge(logits, weights, K, resident, state, params, scores):
        scores[:] = logits + np.float32(params[0]) * resident

    assert nudge.state_size == 3
    assert nudge(bonus=2).bonus == 2
    assert nudge().lossy


def test_a_function_with_other_arguments_is_refused_when_it_is_decorated() -> None:
    with pytest.raises(PolicyError, match=r"must be def wrong\(logits, weights, K, resident, state, params, scores\), "
                                          r"it takes 1 arguments .*test_policy\.py, line \d+"):
        @ml.routing.policy
        def wrong(logits):
            pass


def test_a_class_without_its_function_is_refused() -> None:
    with pytest.raises(PolicyError, match="needs a function keep"):
        class Empty(ml.eviction.EvictionPolicy):
            pass


def test_a_parameter_that_is_no_parameter_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"half_life must be an ml\.Parameter"):
        @ml.eviction.policy(half_life=64)
        def mine(expert, stats, state, params, now):
            return 0.0


def test_a_parameter_cannot_hide_what_every_policy_has() -> None:
    with pytest.raises(PolicyError, match="cannot be called 'name'"):
        class Hidden(ml.eviction.EvictionPolicy):
            name = Parameter(1, 0, 2)

            @staticmethod
            def keep(expert, stats, state, params, now):
                return 0.0


def test_a_policy_with_a_token_hook_needs_logits() -> None:
    def seen(logits, stats, state, params, now):
        pass

    @ml.eviction.policy(token=seen)
    def mine(expert, stats, state, params, now):
        return 0.0

    assert mine.needs == {"logits"}


def test_a_parameter_outside_its_own_range_is_refused() -> None:
    with pytest.raises(PolicyError, match="the default must be a number from 0 to 1, not 2"):
        Parameter(2, 0, 1)
    for numbers in ((2, 3, 1), ("a", 0, 1), (0, 0, np.inf), (0, None, 1)):
        with pytest.raises(PolicyError, match="low <= high"):
            Parameter(*numbers)
