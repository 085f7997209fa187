"""Minus Recent Score: the router's own scores, of experts that were not chosen too."""

from __future__ import annotations

import numpy as np

from moe_lab.eviction.base import EvictionPolicy
from moe_lab.kernels.choose import best
from moe_lab.kernels.layout import TOP_K
from moe_lab.policy import Parameter


class MRS(EvictionPolicy):
    """The expert that the router has lately scored least leaves: S = mix · top(s) + (1 - mix) · S at each token.

    s is the softmax of the logits, top(s) keeps the ``breadth`` · K largest and is 0 elsewhere: an expert that nearly
    was chosen is worth keeping. Source: HybriMoE, arXiv 2504.05897, its score-aware caching, with 2 K scores.

    State: one column, S. It needs logits: an engine has them, a plain trace does not.
    """

    mix = Parameter(0.25, 0, 1, doc="weight of the present token in the mixture of scores")
    breadth = Parameter(2, 1, 8, unit="times K", doc="how many of the largest scores count")
    columns = 1

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Keep = S."""
        return stats.own[0, expert]

    @staticmethod
    def token(logits, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Mix this token's scores in."""
        order = best(logits, int(params[1] * state[TOP_K]))
        if len(order) == 0:
            return
        highest, total = np.float64(logits[order[0]]), 0.0
        for z in logits:
            total += np.exp(z - highest)
        for e in range(logits.size):
            stats.own[0, e] *= 1.0 - params[0]
        for e in order:
            stats.own[0, e] += params[0] * np.exp(logits[e] - highest) / total
