"""The live curve against caches that are really run."""

from collections import OrderedDict

import hypothesis.strategies as st
import numpy as np
import pytest
from fake_engine import FakeEngine
from hypothesis import given

from moe_lab.errors import SettingError
from moe_lab_widgets.curve import ReuseCurve


def lru_hits(ids: np.ndarray, slots: int) -> int:
    """Hits of an LRU cache that judges all of a token's experts before it touches any; ``ids`` (T, K)."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for row in ids:
        used = [int(e) for e in row if e >= 0]
        hits += sum(e in cache for e in used)
        for e in used:
            cache[e] = None
            cache.move_to_end(e)
        while len(cache) > slots:
            cache.popitem(last=False)
    return hits


@given(st.integers(0, 10_000))
def test_the_curve_equals_an_lru_cache_of_every_size(seed):
    rng = np.random.default_rng(seed)
    T, L, E, K = 40, 2, 10, 3
    ids = np.stack([[rng.permutation(E)[:K] for _ in range(L)] for _ in range(T)])
    curve = ReuseCurve(L, E, K)
    for token in ids:
        curve.add(token)
    for slots in range(K, E + 1):
        hits = sum(lru_hits(ids[:, layer], slots) for layer in range(L))
        assert curve.hit_rate()[slots] == pytest.approx(hits / ids.size)


def test_unused_places_are_no_uses():
    ids = np.array([[[0, 1]], [[0, -1]], [[1, 2]], [[-1, -1]], [[0, 2]]])
    curve = ReuseCurve(1, 4, 2)
    for token in ids:
        curve.add(token)
    for slots in (2, 3, 4):
        assert curve.hit_rate()[slots] == pytest.approx(lru_hits(ids[:, 0], slots) / 7)


@pytest.mark.parametrize("ids", [[[0, 4]], [[1, 1]], [[2**32, 1]], [[-2, 1]]])
def test_ids_that_are_no_experts_of_a_layer_are_refused(ids):
    with pytest.raises(SettingError, match="ids"):
        ReuseCurve(1, 4, 2).add(np.array([ids]))


def test_the_curve_speaks_of_its_window_only():
    rng = np.random.default_rng(3)
    ids = np.stack([[rng.permutation(8)[:2]] for _ in range(100)])
    curve = ReuseCurve(1, 8, 2, window=20)
    for token in ids:
        curve.add(token)
    whole = lru_hits(ids[:, 0], 4) - lru_hits(ids[:80, 0], 4)
    assert curve.tokens == 20
    assert curve.hit_rate()[4] == pytest.approx(whole / 40)


def test_the_curve_predicts_what_the_engine_then_measures():
    engine = FakeEngine(L=2, E=32, K=4, slots=12)
    curve, hits, uses = ReuseCurve(2, 32, 4), 0, 0
    for i, step in enumerate(engine.stream("a", max_new_tokens=300)):
        curve.add(engine.telemetry.ring.ids[i])
        hits, uses = hits + step.hits, uses + step.hits + step.misses
    assert curve.hit_rate()[12] == pytest.approx(hits / uses)
