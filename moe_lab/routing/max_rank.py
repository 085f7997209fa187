"""Max-Rank: among the first M of the ranking, resident experts go first."""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.choose import best
from moe_lab.kernels.jit import copied
from moe_lab.policy import Parameter
from moe_lab.routing.base import RoutingPolicy

PREFERRED = float(np.finfo(np.float32).max)
"""Score of the resident experts in the window: above every logit; among them the larger logit goes first."""


class MaxRank(RoutingPolicy):
    """Takes resident experts from the ``window`` best first, then the others in rank order.

    The ``keep_top`` best experts are used whatever is resident. A window of K or less is the original routing.
    Source: arXiv 2412.00099, algorithm 1.
    """

    window = Parameter(12, 1, 64, unit="ranks", doc="how far down the ranking a resident expert may be taken from",
                       integer=True, open_ended=True)
    keep_top = Parameter(1, 0, 8, unit="experts", doc="best experts that are always used", integer=True,
                         open_ended=True)

    @staticmethod
    def rank(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
        """Head +inf, residents of the window above all logits, the others by their logit."""
        copied(logits, scores)
        order = best(logits, max(K, int(params[0]), int(params[1])))
        for i in range(len(order)):
            if i < int(params[1]):
                scores[order[i]] = np.inf
            elif i < int(params[0]) and resident[order[i]]:
                scores[order[i]] = PREFERRED
