"""Belady's bound: the fewest misses any eviction could have, with the whole future known.

Knows recorded ids. The rules are those of a replay: one event per token and layer, its experts looked up before
and protected; every one of them is brought in. A looser bound lets them leave right after their token; the
paper's synthetic figures are of that kind. Source: Belady, IBM Systems Journal 5 (1966).
"""

from __future__ import annotations

import numpy as np

from moe_lab.errors import BudgetError
from moe_lab.kernels.jit import jit
from moe_lab.kernels.recorded import recorded

WIDE = 512
"""From so many experts on the one used farthest ahead is found in a heap, not by looking at all."""


def belady(ids: np.ndarray, E: int, C: int, protected: bool = True) -> int:
    """Misses of the best possible eviction over the recorded ``ids`` (T, K) int32, -1 for none, from an empty start.

    Args:
        protected: what a token used is resident after it, as under every policy; else it may have left again, which
            no policy of ours may do, and the bound is lower.

    Raises:
        BudgetError: fewer slots than a token uses experts.
        SettingError: an id that is not one of ``E`` experts.

    Example:
        >>> belady(np.array([[0, 1], [1, 2], [0, 2]], dtype=np.int32), E=4, C=2)
        4
        >>> belady(np.array([[0, 1], [1, 2], [0, 2]], dtype=np.int32), E=4, C=3)
        3
    """
    return int(belady_misses(ids, E, C, protected).sum())


def belady_misses(ids: np.ndarray, E: int, C: int, protected: bool = True) -> np.ndarray:
    """As :func:`belady`, the misses of each token, (T,) int64.

    Which token has them depends on ties that change nothing: only sums from the start mean something exact.

    Example:
        >>> belady_misses(np.array([[0, 1], [1, 2], [0, 2]], dtype=np.int32), E=4, C=2).tolist()
        [2, 1, 1]
    """
    if ids.shape[1] > C:
        raise BudgetError(f"{C} slots are fewer than the {ids.shape[1]} experts that one token uses at once")
    ids, C = recorded(ids, E), min(C, E)
    missed = np.zeros(len(ids), dtype=np.int64)
    if protected and E >= WIDE:
        _belady_wide(ids, E, C, missed)
    else:
        _belady(ids, E, C, protected, missed)
    return missed


@jit(helper=True)
def _following(ids: np.ndarray, E: int) -> np.ndarray:
    """(T, K) int64: token of the next use of ids[t, k], T for never."""
    T, K = ids.shape
    following = np.empty((T, K), np.int64)
    upcoming = np.full(E, T, np.int64)
    for t in range(T - 1, -1, -1):
        for k in range(K):
            if ids[t, k] >= 0:
                following[t, k] = upcoming[ids[t, k]]
        for k in range(K):
            if ids[t, k] >= 0:
                upcoming[ids[t, k]] = t
    return following


@jit(helper=True)
def _coming(ids: np.ndarray, away: np.ndarray) -> int:
    """How many of ``ids`` (K,) are not resident: ``away`` (E,) is -1 for them."""
    coming = 0
    for k in range(ids.size):
        if ids[k] >= 0 and away[ids[k]] < 0:
            coming += 1
    return coming


@jit
def _belady(ids: np.ndarray, E: int, C: int, protected: bool, missed: np.ndarray) -> None:
    T, K = ids.shape
    following = _following(ids, E)
    away = np.full(E, -1, np.int64)             # token of the next use of each resident, -1 for the others
    held = 0
    for t in range(T):
        missed[t] = _coming(ids[t], away)
        held += missed[t]
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


@jit
def _belady_wide(ids: np.ndarray, E: int, C: int, missed: np.ndarray) -> None:
    """The protected bound with a heap of (next use, expert) in one number each, the farthest on top.

    An entry is out of date once its expert was used again or has left; the residents' next uses tell. Those of the
    present token's hits say now, so they lie below all others.
    """
    T, K = ids.shape
    following = _following(ids, E)
    away = np.full(E, -1, np.int64)
    heap, size, held = np.empty(4 * (C + K), np.int64), 0, 0
    for t in range(T):
        missed[t] = _coming(ids[t], away)
        held += missed[t]
        while held > C:
            top = heap[0]
            size -= 1
            heap[0] = heap[size]
            _sink(heap, 0, size)
            if away[top % E] == top // E:
                away[top % E] = -1
                held -= 1
        for k in range(K):
            if ids[t, k] >= 0:
                away[ids[t, k]] = following[t, k]
        if size + K > heap.size:                # only what is up to date, in order anew
            size = 0
            for e in range(E):
                if away[e] > t:
                    heap[size] = away[e] * E + e
                    size += 1
            for i in range(size // 2 - 1, -1, -1):
                _sink(heap, i, size)
        else:
            for k in range(K):
                if ids[t, k] >= 0:
                    heap[size] = following[t, k] * E + ids[t, k]
                    size += 1
                    _rise(heap, size - 1)


@jit(helper=True)
def _sink(heap: np.ndarray, i: int, size: int) -> None:
    value = heap[i] if size > 0 else 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= value:
            break
        heap[i] = heap[child]
        i = child
    if size > 0:
        heap[i] = value


@jit(helper=True)
def _rise(heap: np.ndarray, i: int) -> None:
    value = heap[i]
    while i > 0 and heap[(i - 1) // 2] < value:
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = value


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
