"""Numbers that a replay is given: any kind that is a number, refused where it can be none."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from layers import random_ids

import moe_lab as ml
from moe_lab.errors import SettingError
from moe_lab.evaluation.replay_grid import slots
from moe_lab.eviction import LearnedEviction


@pytest.fixture
def trace(rng: np.random.Generator) -> ml.Trace:
    return ml.Trace(ids=random_ids(rng, 60, 3, 12)[:, None], experts=12)


def test_numbers_of_numpy_are_numbers(trace: ml.Trace) -> None:
    plain = ml.replay(trace, cache=[4, 8], window=7, train=0.5, seed=3)
    given = ml.replay(trace, cache=np.arange(4, 9, 4), window=np.int16(7), train=np.float32(0.5), seed=np.uint8(3))
    assert given.rows == plain.rows
    assert ml.replay(trace, cache=np.array(4)).rows == ml.replay(trace, cache=np.uint64(4)).rows
    assert ml.replay(trace, train=Fraction(1, 2)).rows == ml.replay(trace, train=0.5).rows


def test_more_slots_than_experts_are_all_of_them(trace: ml.Trace) -> None:
    for cache in (np.uint64(2**63), 10**30, "1" * 400 + " slots", "900%", "1" * 400 + "%"):
        assert slots(cache, trace) == [12]
    assert slots("4.0 slots", trace) == [4]


@pytest.mark.parametrize("cache", [True, np.True_, 4.0, "4.5 slots", "4.5slots", None, "-4 slots", "half"])
def test_slots_that_are_no_whole_number_are_refused_and_never_cut(cache: object, trace: ml.Trace) -> None:
    with pytest.raises(SettingError, match="is not understood; type 16"):
        ml.replay(trace, cache=cache)


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "1", None, 2**53])
def test_a_seed_is_a_whole_number_that_policies_see_exactly(wrong: object, trace: ml.Trace) -> None:
    for run in (lambda: ml.replay(trace, seed=wrong), lambda: LearnedEviction.fit(trace, seed=wrong)):
        with pytest.raises(SettingError, match=r"must be a whole number from 0, below 2\^53"):
            run()


def test_training_counts_in_whole_numbers_from_1(trace: ml.Trace) -> None:
    assert LearnedEviction.fit(trace, epochs=np.int8(1), horizon=np.int8(4))
    for wrong in (dict(epochs=0), dict(epochs=1.5), dict(horizon=True)):
        with pytest.raises(SettingError, match=r"of LearnedEviction\.fit must be a whole number, 1 or more"):
            LearnedEviction.fit(trace, **wrong)
