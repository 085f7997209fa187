"""The layers, logits and ids that policies are tried on, and how two walks are compared.

Knows the walk. Knows no contract.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walked import Walked

SHAPES = ((16, 4, 8), (12, 1, 3), (10, 5, 5), (8, 3, 8))
"""(E, K, C) of the layers that a policy is tried on."""
TOKENS = 48


def rng() -> np.random.Generator:
    """The same draws each time."""
    return np.random.default_rng(20241129)


def logits_of(rng: np.random.Generator, E: int, tokens: int = TOKENS) -> np.ndarray:
    """Logits (tokens, E) float32, some experts liked more than others."""
    return (rng.standard_normal((tokens, E)) + rng.standard_normal(E)).astype(np.float32)


def weights_of(logits: np.ndarray) -> np.ndarray:
    """Their softmax, float32."""
    mass = np.exp(logits - logits.max(1, keepdims=True))
    return (mass / mass.sum(1, keepdims=True)).astype(np.float32)


def ids_of(rng: np.random.Generator, E: int, K: int, tokens: int = TOKENS) -> np.ndarray:
    """Ids (tokens, K) int32, distinct in a row."""
    return np.argsort(-logits_of(rng, E, tokens), axis=1)[:, :K].astype(np.int32)


def memory(state: LayerState) -> dict[str, bytes]:
    """All that a layer remembers, by name."""
    arrays = {"resident": state.resident, "clock": state.clock, "the routing's state": state.route_state,
              "the eviction's state": state.evict_state, **{f"stats.{key}": value
                                                            for key, value in state.stats._asdict().items()}}
    return {key: array.tobytes() for key, array in arrays.items()}


def differing(one: Walked, other: Walked) -> str:
    """Where two walks part, in words that end in ``not`` what the other has; empty if nowhere."""
    for name in ("ids", "hits", "evicted", "rank"):
        differ = np.nonzero((getattr(one, name) != getattr(other, name)).reshape(len(one.ids), -1).any(1))[0]
        if differ.size:
            at = int(differ[0])
            return f"{name} at token {at}: {getattr(one, name)[at].tolist()}, not {getattr(other, name)[at].tolist()}"
    return ""
