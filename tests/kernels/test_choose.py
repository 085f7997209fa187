"""The K best, and orders: against sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moe_lab.kernels.choose import best, by_weight, choose, rank_of, standby
from moe_lab.kernels.walk_slow import top_k_slow

FEW = st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 1.0, float(np.nextafter(np.float32(1), np.float32(2))), 3e38, np.inf])


def chosen(scores: np.ndarray, logits: np.ndarray, K: int) -> list[int]:
    ids = np.full(K, -7, dtype=np.int32)
    n = choose(scores, logits, ids, np.empty(len(scores), dtype=np.int64))
    return ids[:n].tolist()


@settings(max_examples=300)
@given(st.data(), st.integers(1, 20), st.integers(1, 8))
def test_the_k_best_are_those_of_a_sort(data: st.DataObject, E: int, K: int) -> None:
    scores = data.draw(arrays(np.float32, E, elements=FEW))
    logits = data.draw(arrays(np.float32, E, elements=FEW | st.floats(-10, 10, width=32)))
    assert chosen(scores, logits, K) == top_k_slow(scores, logits, K)


def test_ties_go_to_the_larger_logit_then_to_the_lower_id() -> None:
    scores = np.array([1, np.inf, 1, np.inf, 1], dtype=np.float32)
    logits = np.array([0, 1, 5, 2, 5], dtype=np.float32)
    assert chosen(scores, logits, 4) == [3, 1, 2, 4]


def test_minus_infinity_is_never_chosen_and_infinity_always() -> None:
    scores = np.array([-np.inf, 5, np.inf, -np.inf], dtype=np.float32)
    assert chosen(scores, scores, 3) == [2, 1]
    assert chosen(np.full(3, -np.inf, dtype=np.float32), scores[:3], 2) == []


def test_a_negative_zero_is_a_zero() -> None:
    assert chosen(np.array([-0.0, 0.0], dtype=np.float32), np.zeros(2, dtype=np.float32), 1) == [0]


def test_a_nan_score_names_its_expert() -> None:
    scores = np.array([1, 2, np.nan], dtype=np.float32)
    assert choose(scores, scores, np.empty(1, dtype=np.int32), np.empty(3, dtype=np.int64)) == -1 - 2


@pytest.mark.parametrize("n", [-3, 0, 1, 3, 16, 40])
def test_best_is_the_head_of_a_stable_sort(n: int, rng: np.random.Generator) -> None:
    logits = rng.integers(0, 5, 16).astype(np.float32)
    assert best(logits, n).tolist() == np.argsort(-logits, kind="stable")[:max(0, n)].tolist()


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.int32])
def test_best_takes_numbers_of_any_type(dtype: type, rng: np.random.Generator) -> None:
    values = rng.integers(-5, 6, 16).astype(dtype)
    assert best(values, 5).tolist() == np.argsort(-values, kind="stable")[:5].tolist()
    assert best(np.repeat(values, 2)[::2], 5).tolist() == best(values, 5).tolist()


def test_of_numbers_with_a_nan_none_is_best() -> None:
    values = np.arange(8, dtype=np.float32)
    values[2] = np.nan
    assert best(values, 3).tolist() == best(np.full(8, np.nan), 8).tolist() == []
    assert standby(values, np.zeros(8, np.float32), np.ones(8, np.bool_), np.array([0, 1])).tolist() == []


def test_the_rank_is_the_place_in_a_stable_sort(rng: np.random.Generator) -> None:
    logits = rng.integers(0, 5, 16).astype(np.float32)
    order = np.argsort(-logits, kind="stable").tolist()
    assert [rank_of(e, logits) for e in range(16)] == [order.index(e) for e in range(16)]


def test_weights_fall_and_ties_go_to_the_lower_id() -> None:
    ids = np.array([4, 1, 3, 0, 2], dtype=np.int32)
    by_weight(ids, np.array([0.5, 0.5, 0.9, 0.1, 0.5], dtype=np.float32), 4)
    assert ids.tolist() == [0, 1, 4, 3, 2]      # the fifth place is not touched
