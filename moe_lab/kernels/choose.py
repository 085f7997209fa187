"""The K best experts of one token, and small helpers that policies may call.

Knows orders and ties: larger score, then larger original logit, then lower id. Knows no residency.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.jit import jit


@jit(cache=False)
def choose(scores: np.ndarray, logits: np.ndarray, ids: np.ndarray) -> int:
    """Fill ``ids`` (K,) with the K best of ``scores`` (E,), in falling order; returns how many there are.

    +inf always, -inf never; ties go to the larger of ``logits`` (E,), then to the lower id. -1 - e for a NaN score
    of expert e.
    """
    K, n = ids.size, 0
    for e in range(scores.size):
        s, z = scores[e], logits[e]
        if s != s:
            return -1 - e
        if s == -np.inf:
            continue
        place = n
        while place > 0 and (s > scores[ids[place - 1]] or (s == scores[ids[place - 1]] and z > logits[ids[place - 1]])):
            place -= 1
        if place < K:
            n = min(n + 1, K)
            for i in range(n - 1, place, -1):
                ids[i] = ids[i - 1]
            ids[place] = e
    return n


@jit(cache=False)
def by_weight(ids: np.ndarray, weights: np.ndarray, n: int) -> None:
    """Sort the first ``n`` of ``ids`` by falling weight, ties by rising id."""
    for i in range(1, n):
        e = ids[i]
        w, j = weights[e], i
        while j > 0 and (w > weights[ids[j - 1]] or (w == weights[ids[j - 1]] and e < ids[j - 1])):
            ids[j] = ids[j - 1]
            j -= 1
        ids[j] = e


@jit(cache=False)
def rank_of(expert: int, logits: np.ndarray) -> int:
    """Place of an expert among ``logits`` (E,), 0 for the best; ties go to the lower id."""
    z, place = logits[expert], 0
    for e in range(logits.size):
        place += logits[e] > z or (logits[e] == z and e < expert)
    return place


@jit(cache=False)
def best(logits: np.ndarray, n: int) -> np.ndarray:
    """Ids (n,) int64 of the ``n`` largest of ``logits`` (E,), in falling order, ties to the lower id; at most E.

    For rank functions of policies: ``ml.routing.best``.

    Example:
        >>> best(np.array([0.5, 2.0, 2.0, 1.0], dtype=np.float32), 3)
        array([1, 2, 3])
    """
    ids = np.empty(max(0, min(n, logits.size)), dtype=np.int64)
    found = choose(logits, logits, ids) if ids.size else 0
    return ids[:found]
