"""Belady's bound and reuse distances, against slow twins and against replay."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import layers, new_layer, random_ids

from moe_lab.errors import BudgetError, SettingError
from moe_lab.kernels import belady as belady_module
from moe_lab.kernels import reuse as reuse_module
from moe_lab.kernels.belady import belady, belady_misses, belady_slow
from moe_lab.kernels.replay import misses_by_window, replay_layer
from moe_lab.kernels.reuse import ReuseDistances, lru_hit_rates, lru_hit_rates_slow, lru_profile


@settings(max_examples=60)
@given(layers(), st.booleans())
def test_belady_agrees_with_its_slow_twin(sizes: tuple[int, int, int, int], protected: bool) -> None:
    E, K, C, seed = sizes
    ids = random_ids(np.random.default_rng(seed), 30, K, E, missing=0.1 if seed % 2 else 0.0)
    assert belady(ids, E, C, protected) == belady_slow(ids, E, C, protected)


@settings(max_examples=60)
@given(layers())
def test_belady_in_a_heap_agrees_with_looking_at_all(sizes: tuple[int, int, int, int]) -> None:
    E, K, C, seed = sizes
    ids = random_ids(np.random.default_rng(seed), 150, K, E, missing=0.1 if seed % 2 else 0.0)
    expected = belady_misses(ids, E, C)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(belady_module, "WIDE", 0)
        wide = belady_misses(ids, E, C)
    assert wide.sum() == expected.sum() == belady(ids, E, C)
    assert wide[0] == expected[0] == (ids[0] >= 0).sum()


def test_belady_of_many_experts_goes_through_the_heap(rng: np.random.Generator) -> None:
    E = belady_module.WIDE
    ids = np.stack([rng.choice(E, 4, replace=False) for _ in range(120)]).astype(np.int32)
    for C in (4, 60, 200):
        assert belady(ids, E, C) == belady_slow(ids, E, C)


def least_misses(ids: np.ndarray, C: int) -> int:
    """The fewest misses over every possible choice of victims."""
    states = {frozenset(): 0}
    for row in ids.tolist():
        new: dict[frozenset, int] = {}
        for held, misses in states.items():
            others = held - set(row)
            missed = misses + len(set(row) - held)
            for keep in range(min(len(others), C - len(row)) + 1):
                for stay in itertools.combinations(sorted(others), keep):
                    after = frozenset(stay) | set(row)
                    new[after] = min(new.get(after, missed), missed)
        states = new
    return min(states.values())


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 2), st.integers(0, 2))
def test_belady_is_the_least_over_all_evictions(seed: int, K: int, more: int) -> None:
    ids = random_ids(np.random.default_rng(seed), 9, K, 6)
    assert belady(ids, 6, K + more) == least_misses(ids, K + more)


def test_belady_with_all_experts_resident_misses_first_uses_only(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 50, 3, 10)
    assert belady(ids, 10, 10) == len(np.unique(ids))


def test_belady_refuses_what_cannot_be() -> None:
    with pytest.raises(BudgetError, match="1 slots are fewer than the 2 experts"):
        belady(np.array([[0, 1]], dtype=np.int32), 4, 1)
    with pytest.raises(SettingError, match="from -1 to 3"):
        belady(np.array([[0, 4]], dtype=np.int32), 4, 2)
    E = belady_module.WIDE                      # the heap would run empty and be read from beyond its end
    with pytest.raises(SettingError, match=r"distinct, not \[7, 7, 7\] \(row 1\)"):
        belady(np.array([[1, 2, 3], [7, 7, 7]]), E, 3)


def test_a_profile_of_no_windows_is_refused() -> None:
    with pytest.raises(SettingError, match="window=0 must be a number of tokens"):
        lru_profile(np.array([[0, 1]]), 4, 0)


@settings(max_examples=40)
@given(layers())
def test_reuse_distances_give_the_replays_hit_rate_at_every_size(sizes: tuple[int, int, int, int]) -> None:
    E, K, _, seed = sizes
    ids = random_ids(np.random.default_rng(seed), 40, K, E, missing=0.1 if seed % 2 else 0.0)
    rates = lru_hit_rates(ids, E)
    assert np.isnan(rates[:K]).all()
    uses = max(1, int((ids >= 0).sum()))
    for C in range(K, E + 1):
        assert rates[C] == replay_layer(ids, None, new_layer(E, K, C)).sum() / uses


@settings(max_examples=20)
@given(layers())
def test_reuse_distances_agree_with_their_slow_twin(sizes: tuple[int, int, int, int]) -> None:
    E, K, _, seed = sizes
    ids = random_ids(np.random.default_rng(seed), 25, K, E)
    np.testing.assert_array_equal(lru_hit_rates(ids, E), lru_hit_rates_slow(ids, E))


def test_reuse_distances_can_be_kept_up_token_by_token(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 60, 3, 12)
    whole, live = ReuseDistances(12), ReuseDistances(12)
    whole.add(ids)
    for row in ids:
        live.add(row[None])
    np.testing.assert_array_equal(whole.hits(), live.hits())
    assert whole.uses == live.uses == ids.size
    with pytest.raises(SettingError, match="from -1 to 11"):
        live.add(np.array([[12]], dtype=np.int32))
    with pytest.raises(SettingError, match=r"distinct, not \[4, 4\]"):
        live.add(np.array([[4, 4]], dtype=np.int32))


@pytest.mark.parametrize("wide", [False, True])
@settings(max_examples=30)
@given(sizes=layers(), window=st.integers(1, 50))
def test_a_profile_of_lru_is_a_replay_at_every_size_by_windows(wide: bool, sizes: tuple[int, int, int, int],
                                                               window: int) -> None:
    E, K, _, seed = sizes
    ids = random_ids(np.random.default_rng(seed), 45, K, E, missing=0.2 if seed % 2 else 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reuse_module, "WIDE", 0 if wide else 1000)
        profile = lru_profile(ids, E, window)
    for C in range(K, E + 1):
        misses, waits = misses_by_window(ids, replay_layer(ids, None, new_layer(E, K, C)), window)
        assert profile.misses[:, C].tolist() == misses.tolist()
        assert profile.waits[:, C].tolist() == waits.tolist()


def test_a_profile_of_many_experts_gives_ticks_anew_without_losing_the_order(rng: np.random.Generator) -> None:
    E = reuse_module.WIDE
    ids = np.stack([rng.choice(E, 3, replace=False, p=np.arange(1, E + 1) / (E * (E + 1) / 2)) for _ in range(1500)])
    rates = lru_hit_rates(ids, E)           # by the list, 4,500 uses: more than the tree has ticks
    misses = lru_profile(ids, E, len(ids)).misses[0]
    np.testing.assert_allclose(1 - misses[3:] / ids.size, rates[3:])
