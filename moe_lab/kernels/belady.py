"""Belady's bound: the fewest misses any eviction could have, with the whole future known.

Knows recorded ids. The rules are those of a replay: one event per token and layer, its experts looked up before
and protected; every one of them is brought in. A looser bound lets them leave right after their token; the
paper's synthetic figures are of that kind. Source: Belady, IBM Systems Journal 5 (1966).
"""

from __future__ import annotations

import numpy as np

from moe_lab.errors import BudgetError, SettingError
from moe_lab.kernels.jit import jit


def belady(ids: np.ndarray, E: int, C: int, protected: bool = True) -> int:
    """Misses of the best possible eviction over the recorded ``ids`` (T, K) int32, -1 for none, from an empty start.

    Args:
        protected: what a token used is resident after it, as under every policy; else it may have left again, which
            no policy of ours may do, and the bound is lower.

    Example:
        >>> belady(np.array([[0, 1], [1, 2], [0, 2]], dtype=np.int32), E=4, C=2)
        4
        >>> belady(np.array([[0, 1], [1, 2], [0, 2]], dtype=np.int32), E=4, C=3)
        3
    """
    ids = np.require(ids, np.int32, ["C", "A", "W"])
    if ids.shape[1] > C:
        raise BudgetError(f"{C} slots are fewer than the {ids.shape[1]} experts that one token uses at once")
    if ids.size and not (ids.min() >= -1 and ids.max() < E):
        raise SettingError(f"ids must be from -1 to {E - 1}, not from {ids.min()} to {ids.max()}")
    return int(_belady(ids, E, C, protected))


@jit
def _belady(ids: np.ndarray, E: int, C: int, protected: bool) -> int:
    T, K = ids.shape
    following = np.empty((T, K), np.int64)      # token of the next use of ids[t, k], T for never
    upcoming = np.full(E, T, np.int64)
    for t in range(T - 1, -1, -1):
        for k in range(K):
            if ids[t, k] >= 0:
                following[t, k] = upcoming[ids[t, k]]
        for k in range(K):
            if ids[t, k] >= 0:
                upcoming[ids[t, k]] = t
    away = np.full(E, -1, np.int64)             # token of the next use of each resident, -1 for the others
    held, misses = 0, 0
    for t in range(T):
        coming = 0
        for k in range(K):
            if ids[t, k] >= 0 and away[ids[t, k]] < 0:
                coming += 1
        misses += coming
        held += coming
        if protected:
            for k in range(K):                  # used now: never the farthest
                if ids[t, k] >= 0 and away[ids[t, k]] >= 0:
                    away[ids[t, k]] = t
            for _ in range(held - C):
                away[np.argmax(away)] = -1
        for k in range(K):
            if ids[t, k] >= 0:
                away[ids[t, k]] = following[t, k]
        if not protected:
            for _ in range(held - C):
                away[np.argmax(away)] = -1
        held = min(held, C)
    return misses


def belady_slow(ids: np.ndarray, E: int, C: int, protected: bool = True) -> int:
    """The slow twin of :func:`belady`: look ahead at every eviction."""
    resident: set[int] = set()
    misses = 0
    for t, row in enumerate(ids):
        chosen = {int(e) for e in row if e >= 0}
        misses += len(chosen - resident)
        resident |= chosen

        def next_use(e: int, after: int = t) -> int:
            ahead = np.nonzero((ids[after + 1:] == e).any(1))[0]
            return int(ahead[0]) if ahead.size else len(ids)

        while len(resident) > C:
            resident.remove(max(resident - chosen if protected else resident, key=next_use))
    return misses
