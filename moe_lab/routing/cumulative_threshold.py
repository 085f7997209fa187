"""Cumulative threshold: Max-Rank with a window that follows how sure the router is."""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.choose import best
from moe_lab.kernels.jit import copied
from moe_lab.policy import Parameter
from moe_lab.routing.base import RoutingPolicy
from moe_lab.routing.max_rank import PREFERRED


class CumulativeThreshold(RoutingPolicy):
    """Takes resident experts first from the fewest best experts that hold ``mass`` of the softmax.

    The window is at least K; the ``keep_top`` best experts are used whatever is resident. A mass near 0 is the
    original routing. Source: arXiv 2412.00099, algorithm 2.
    """

    mass = Parameter(0.7, 0, 1, doc="softmax mass of the experts among which resident ones go first")
    keep_top = Parameter(1, 0, 8, unit="experts", doc="best experts that are always used", integer=True,
                         open_ended=True)

    @property
    def lossy(self) -> bool:
        """With no mass the window is K: the original routing."""
        return self.span("mass")[1] > 0

    @staticmethod
    def rank(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
        """As Max-Rank, the window counted until the mass is reached."""
        copied(logits, scores)
        order = best(logits, len(logits))
        if len(order) == 0:
            return
        highest, total = np.float64(logits[order[0]]), 0.0
        for e in order:
            total += np.exp(logits[e] - highest)
        window, reached = 0, 0.0
        while window < len(order) and reached < params[0] * total:
            reached += np.exp(logits[order[window]] - highest)
            window += 1
        window = max(K, window)
        for i in range(len(order)):
            if i < int(params[1]):
                scores[order[i]] = np.inf
            elif i < window and resident[order[i]]:
                scores[order[i]] = PREFERRED
