"""The K best experts of one token, and small helpers that policies may call.

Knows orders and ties: larger score, then larger original logit, then lower id. Knows no residency.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.jit import copied, jit

LOWEST = -(2**63)
"""Key of an expert that is taken or never to be taken."""


@jit(helper=True)
def _rising(bits: np.int32) -> np.int64:
    """The bits of a float32 as a whole number that rises with it; -0.0 is 0.0."""
    bits = np.int32(0) if bits == np.int32(-(2**31)) else bits
    return np.int64(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@jit(cache=False)
def choose(scores: np.ndarray, logits: np.ndarray, ids: np.ndarray, keys: np.ndarray) -> int:
    """Fill ``ids`` (K,) with the K best of ``scores`` (E,), in falling order; returns how many there are.

    +inf always, -inf never; ties go to the larger of ``logits`` (E,), then to the lower id. -1 - e for a NaN score
    of expert e. ``keys`` (E,) int64 is room to work in: score and logit side by side in one whole number, so that a
    pass for the largest has no branch and fits vector units.
    """
    E = scores.size
    for e in range(E):
        if scores[e] != scores[e]:
            return -1 - e
    score_bits, logit_bits = scores.view(np.int32), logits.view(np.int32)
    for e in range(E):
        keys[e] = (_rising(score_bits[e]) << 32) + _rising(logit_bits[e])
        keys[e] = LOWEST if scores[e] == -np.inf else keys[e]
    for k in range(min(ids.size, E)):
        top = keys[0]
        for e in range(E):
            top = max(top, keys[e])
        if top == LOWEST:
            return k
        e = 0
        while keys[e] != top:
            e += 1
        ids[k], keys[e] = e, LOWEST
    return min(ids.size, E)


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


@jit
def best(logits: np.ndarray, n: int) -> np.ndarray:
    """Ids (n,) int64 of the ``n`` largest of ``logits`` (E,), in falling order, ties to the lower id; at most E.

    Numbers of another type are compared as float32. None where one is NaN, and never one that is -inf. For functions of
    policies: ``ml.routing.best``.

    Example:
        >>> best(np.array([0.5, 2.0, 2.0, 1.0], dtype=np.float32), 3)
        array([1, 2, 3])
    """
    values = np.empty(logits.size, dtype=np.float32)
    copied(logits, values)
    ids = np.empty(max(0, min(n, values.size)), dtype=np.int64)
    found = choose(values, values, ids, np.empty(values.size, dtype=np.int64)) if ids.size else 0
    return ids[:max(0, found)]         # choose answers below 0 for a NaN


@jit
def standby(values: np.ndarray, logits: np.ndarray, resident: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Who could come in: ids of at most len(``order``) resident experts outside ``order``, by falling ``values`` (E,).

    For rank functions that exchange missing experts of ``order`` for resident ones; those that the router masks
    (logit -inf) stay out. All float32 but ``resident`` and ``order``.
    """
    liked = np.full(values.size, -np.inf, np.float32)
    for e in range(values.size):
        if resident[e] and logits[e] > -np.inf:
            liked[e] = values[e]
    for e in order:
        liked[e] = -np.inf
    return best(liked, len(order))
