"""One budget for all layers: the global order of uses, and the cliff under what one token uses."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import random_ids

import moe_lab as ml
from moe_lab.errors import BudgetError, SettingError
from moe_lab.kernels.belady import belady_slow


def some(rng: np.random.Generator, T: int = 80, L: int = 3, K: int = 2, E: int = 9, missing: float = 0.0) -> ml.Trace:
    return ml.Trace(ids=np.stack([random_ids(rng, T, K, E, missing) for _ in range(L)], axis=1), experts=E)


def lru_pool(ids: np.ndarray, slots: int) -> list[int]:
    """Misses by token of one LRU over (layer, expert), token by token, layer by layer, in plain Python."""
    held: OrderedDict[tuple[int, int], None] = OrderedDict()
    misses = []
    for token in ids.tolist():
        misses.append(0)
        for layer, chosen in enumerate(token):
            wanted = [(layer, e) for e in chosen if e >= 0]
            misses[-1] += sum(key not in held for key in wanted)       # all are looked up before any is touched
            for key in wanted:
                if key not in held and len(held) >= slots:
                    del held[next(other for other in held if other not in wanted)]     # the present layer's stay
                held[key] = None
                held.move_to_end(key)
    return misses


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3), st.integers(3, 8))
def test_a_pool_agrees_with_plain_python_at_every_size(seed: int, L: int, K: int, E: int) -> None:
    trace = some(np.random.default_rng(seed), 40, L, K, E, missing=0.1 if seed % 2 else 0.0)
    for row in ml.replay(trace, cache=list(range(K, L * E + 1)), pooled=True):
        assert round(row.miss_rate * trace.uses) == sum(lru_pool(trace.ids, row.cache))


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 2))
def test_belady_of_a_pool_agrees_with_looking_ahead(seed: int, L: int, K: int) -> None:
    trace = some(np.random.default_rng(seed), 25, L, K, 6)
    keys = (trace.ids + 6 * np.arange(L, dtype=np.int32)[:, None]).reshape(-1, K)
    for row in ml.replay(trace, cache=[K, 2 * L, L * K, 5 * L], pooled=True):
        assert round((1 - row.bound_hit_rate) * trace.uses) == belady_slow(keys, 6 * L, row.cache)


@pytest.mark.parametrize("eviction", ["fifo", "lfu", "aged-lfu", "arc", "s3-fifo", "least-stale", "learned"])
def test_a_pool_over_one_layer_is_a_layer(eviction: str, rng: np.random.Generator) -> None:
    trace = some(rng, L=1)
    alone, pool = (ml.replay(trace, eviction=eviction, cache=[3, 5], pooled=pooled) for pooled in (False, True))
    assert [row.hit_rate for row in pool] == [row.hit_rate for row in alone]


def test_under_what_one_token_uses_lru_falls_off_a_cliff(rng: np.random.Generator) -> None:
    """Whatever the pool holds, the other layers push it out before the layer comes again."""
    ids = np.stack([random_ids(rng, 120, 2, 6) for _ in range(8)], axis=1)
    found = ml.replay(ml.Trace(ids=ids, experts=6), eviction=["lru", "lfu"], cache=[4, 14, 16, "50%"], pooled=True)
    lru, lfu = found.rows[:4], found.rows[4:]
    assert [row.hit_rate for row in lru[:2]] == [0, 0] and lru[2].hit_rate > 0.3
    assert lfu[1].hit_rate > 0.1                           # a policy that does not go by recency has no cliff
    assert [row.holds_token for row in lru] == [False, False, True, True]
    assert "pools of 4, 14 slots hold less than one token uses" in repr(found)
    assert {"pooled", "holds_token"} <= set(found.to_frame().columns)
    assert lru[3].share == 0.5 and lru[3].cache == 24 and not lru[3].layers


def test_ticks_are_shared_and_tokens_counted_once(rng: np.random.Generator) -> None:
    """A policy that tells by the state what it sees: the token, and how many uses one has."""
    @ml.eviction.policy
    def spy(expert, stats, state, params, now):
        expected = np.floor((now - 1) / state[3])
        return np.nan if state[1] != expected or state[3] != 6 else stats.last_use[expert]

    trace = some(rng)           # 3 layers, K = 2: ticks 1 to 6 belong to token 0
    assert ml.replay(trace, eviction=spy, cache=9, pooled=True).rows[0].hit_rate == ml.replay(
        trace, cache=9, pooled=True).rows[0].hit_rate


def test_what_a_pool_cannot_have_is_skipped_or_refused(rng: np.random.Generator) -> None:
    trace = some(rng)
    by_layer = ml.eviction.AgedLFU(half_life=[8, 16, 32])
    rows = ml.replay(trace, eviction=["lru", by_layer], cache=[1, 6], pooled=True).rows
    assert "1 slots in the pool, under the floor: a layer uses 2" in rows[0].skipped
    assert "6 to hold all" in rows[0].skipped
    assert not rows[1].skipped and "one pool serves all of them" in rows[3].skipped
    with pytest.raises(BudgetError, match="under the floor"):
        ml.replay(trace, cache=1, pooled=True)
    with pytest.raises(SettingError, match="take one of the two"):
        ml.replay(trace, routing="original", pooled=True)
