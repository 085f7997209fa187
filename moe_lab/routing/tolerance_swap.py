"""Swapping within a tolerance: a missing expert gives way to a resident one that the router likes nearly as much."""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.choose import best, standby
from moe_lab.kernels.jit import copied
from moe_lab.policy import Parameter
from moe_lab.routing.base import RoutingPolicy


class ToleranceSwap(RoutingPolicy):
    """Replaces a missing expert by a resident one whose logit is at most ``tolerance`` lower.

    Beyond the ``keep_top`` best, from the last rank up; the best resident comes in first. Under a softmax a tolerance
    of t bounds each swap: the weight that comes in is at least e^-t of the one that goes. Source: the score margin of
    the expert substitution in colibri (issues 119 and 865), here with the best resident as the substitute.
    """

    tolerance = Parameter(0.5, 0, 8, unit="logits", doc="how much lower the logit of a substitute may be",
                          open_ended=True)
    keep_top = Parameter(1, 0, 8, unit="experts", doc="best experts that are always used", integer=True,
                         open_ended=True)

    @staticmethod
    def rank(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
        """The cheapest missing meets the best resident outside the first K; the first pair too far apart ends it."""
        copied(logits, scores)
        order = best(logits, K)
        others, taken = standby(logits, logits, resident, order), 0
        for i in range(len(order) - 1, int(params[1]) - 1, -1):
            out = order[i]
            if resident[out]:
                continue
            if taken == len(others) or np.float64(logits[out]) - logits[others[taken]] > params[0]:
                break
            scores[out], scores[others[taken]] = -np.inf, np.inf
            taken += 1
