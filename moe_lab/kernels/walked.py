"""What a walk over tokens comes to.

Knows its arrays. Knows neither how they are filled, by ``walk`` or its twin, nor what they are used for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Walked(NamedTuple):
    """What a walk over T tokens chose and moved. One row a token, experts in falling gate weight."""

    ids: np.ndarray
    """(T, K) int32, -1 where fewer than K were used."""
    gates: np.ndarray
    """(T, K) float32: weights of the chosen as they came, not renormalised; 0 where the id is -1."""
    hits: np.ndarray
    """(T, K) bool: resident before the token."""
    evicted: np.ndarray
    """(T, K) int32: who left to make room for the expert at this place, -1 for nobody."""
    rank: np.ndarray
    """(T, K) int16: place among the original logits, 0 the best; K and more means swapped in. -1 where the id is -1."""
    mass: np.ndarray
    """(T,) float32: weights of the chosen over those of the original top K."""

    @classmethod
    def empty(cls, T: int, K: int) -> Walked:
        """Room for T tokens; every field is written by the walk."""
        return cls(np.empty((T, K), np.int32), np.empty((T, K), np.float32), np.empty((T, K), np.bool_),
                   np.empty((T, K), np.int32), np.empty((T, K), np.int16), np.empty(T, np.float32))
