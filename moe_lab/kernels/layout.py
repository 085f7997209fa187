"""Where things stand in the arrays that policies and kernels share.

Knows places and names only. A policy's functions may use all of them; numba freezes the numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LAYER, TOKEN, SEED, TOP_K, SLOTS, EXPERTS = range(6)
"""Places in a state vector (float64): which MoE layer; tokens this layer has seen before the present one; the
run's seed; K; cache slots of the layer; E."""
OWN = 8
"""First place in a state vector that is the policy's own, zero at the start."""


class Stats(NamedTuple):
    """What is known of the experts of one layer, resident or not. Ticks count expert uses, the first is 1."""

    last_use: np.ndarray
    """(E,) int64: tick of the last use, 0 for never."""
    arrived: np.ndarray
    """(E,) int64: tick of the last arrival, 0 for never."""
    uses: np.ndarray
    """(E,) int64: uses since the start, kept after eviction."""
    own: np.ndarray
    """(columns, E) float64: the policy's own, zero at the start."""
