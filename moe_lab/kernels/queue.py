"""Queues in columns: experts in order by a stamp, for eviction policies with queues of their own.

Knows stamps: the larger the later. Knows no residency and no policy.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.jit import jit


@jit
def to_the_back(stamps: np.ndarray, moving: np.ndarray, last: float) -> float:
    """Stamp the ``moving`` (E,) bool anew, in their order, after ``last``; returns the last stamp that was given.

    ``stamps`` (E,) float64; equal ones go by id.

    Example:
        >>> stamps = np.array([3.0, 1.0, 2.0])
        >>> to_the_back(stamps, np.array([True, True, False]), 3.0), stamps.tolist()
        (5.0, [5.0, 4.0, 2.0])
    """
    left = np.sum(moving)
    while left > 0:
        first = -1
        for e in range(stamps.size):
            if moving[e] and (first < 0 or stamps[e] < stamps[first]):
                first = e
        last += 1.0
        stamps[first], moving[first] = last, False
        left -= 1
    return last
