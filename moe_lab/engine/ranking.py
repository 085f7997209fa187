"""Where each expert stood at a token: before the routing policy had its say, and after.

Knows two rows of numbers and the order of ``kernels.choose``; asks nobody how they came about.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """Places of the experts of one layer at one token, int16 (E,), 0 the best, -1 for one that is never chosen."""

    before: np.ndarray
    """Among the model's logits."""
    after: np.ndarray
    """Among the scores of the routing policy."""


def ranking_of(logits: np.ndarray, scores: np.ndarray) -> Ranking:
    """The ranking by ``logits`` (E,) and ``scores`` (E,) float32: +inf first, -inf never; ties go to the larger
    logit, then to the lower id.

    >>> minus = -np.inf
    >>> ranking_of(np.array([3, 2, 1, minus]), np.array([3, minus, np.inf, minus]))
    Ranking(before=array([ 0,  1,  2, -1], dtype=int16), after=array([ 1, -1,  0, -1], dtype=int16))
    """
    return Ranking(_places(logits, logits), _places(scores, logits))


def _places(values: np.ndarray, logits: np.ndarray) -> np.ndarray:
    order = np.lexsort((-logits, -values))          # stable: what is equal in both stays in the order of ids
    places = np.empty(values.size, dtype=np.int16)
    places[order] = np.arange(values.size)
    places[np.isneginf(values)] = -1
    return places
