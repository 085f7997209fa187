"""Swapping: what is missing is replaced by what is resident, however little the router likes it."""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.choose import best, standby
from moe_lab.kernels.jit import copied
from moe_lab.kernels.layout import LAYER, SEED, TOKEN
from moe_lab.kernels.noise import noise
from moe_lab.policy import Parameter
from moe_lab.routing.base import RoutingPolicy


class Swap(RoutingPolicy):
    """Replaces every missing expert beyond the ``keep_top`` best by a resident one: the best, or any at random.

    Where too few others are resident, the best of the missing stay. At random, the draw depends on the run's seed,
    the layer, the token and the expert alone. Source: arXiv 2412.00099, the baseline "swapping".
    """

    keep_top = Parameter(1, 0, 8, unit="experts", doc="best experts that are always used", integer=True,
                         open_ended=True)
    at_random = Parameter(0, 0, 1, doc="1: any resident expert comes in, 0: the one with the largest logit",
                          integer=True, words={"best": 0, "random": 1})

    @staticmethod
    def rank(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
        """Missing experts of the tail, the last first, are exchanged for residents outside the first K."""
        copied(logits, scores)
        order = best(logits, K)
        liked = logits.copy()
        if params[1] > 0.0:
            for e in range(logits.size):
                liked[e] = noise(int(state[SEED]), int(state[LAYER]), int(state[TOKEN]), e)
        others, taken = standby(liked, logits, resident, order), 0
        for i in range(len(order) - 1, int(params[0]) - 1, -1):
            if taken < len(others) and not resident[order[i]]:
                scores[order[i]], scores[others[taken]] = -np.inf, np.inf
                taken += 1
