"""Layers, logits and traces that the tests of walking share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from moe_lab.eviction import LRU, EvictionPolicy
from moe_lab.kernels.residency import LayerState
from moe_lab.routing import Original, RoutingPolicy

TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"


def softmax(logits: np.ndarray) -> np.ndarray:
    """Gate weights (T, E) float32 of all experts."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    return (e / e.sum(1, keepdims=True)).astype(np.float32)


def random_logits(rng: np.random.Generator, T: int, E: int, skew: float = 0.0) -> np.ndarray:
    """Normal logits (T, E) float32; with ``skew`` some experts are liked more than others."""
    return (rng.standard_normal((T, E)) + skew * rng.standard_normal(E)).astype(np.float32)


def nearly_equal_logits(rng: np.random.Generator, T: int, E: int) -> np.ndarray:
    """Logits (T, E) float32 from a handful of values, equal or one unit in the last place apart."""
    base = rng.choice(np.array([-3.0, 0.0, 1.0, 7.3], dtype=np.float32), (T, E))
    steps = rng.integers(-1, 2, (T, E))
    return np.where(steps == 0, base, np.nextafter(base, np.where(steps > 0, np.inf, -np.inf).astype(np.float32)))


def new_layer(E: int, K: int, C: int, routing: RoutingPolicy | None = None, eviction: EvictionPolicy | None = None,
              layer: int = 0, seed: int = 0) -> LayerState:
    """A layer with the original routing and LRU unless told."""
    return LayerState.new(E, K, C, routing or Original(), eviction or LRU(), layer, seed)


def random_ids(rng: np.random.Generator, T: int, K: int, E: int, missing: float = 0.0) -> np.ndarray:
    """Ids (T, K) int32, distinct in a row and skewed towards low ids; a share of them -1."""
    liked = 1.0 / np.arange(1, E + 1)
    ids = np.stack([rng.choice(E, K, replace=False, p=liked / liked.sum()) for _ in range(T)]).astype(np.int32)
    return np.where(rng.random(ids.shape) < missing, np.int32(-1), ids)


def changing(state: LayerState) -> list[bytes]:
    """All that a walk may change, to compare before and after."""
    arrays = (state.resident, *state.stats, state.clock, state.route_state, state.evict_state)
    return [array.tobytes() for array in arrays]


@st.composite
def layers(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Sizes that belong together, and a seed: E, K, C, seed."""
    E = draw(st.integers(2, 24))
    K = draw(st.integers(1, min(E, 6)))
    return E, K, draw(st.integers(K, E)), draw(st.integers(0, 2**31))
