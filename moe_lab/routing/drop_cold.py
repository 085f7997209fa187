"""Dropping cold experts: a missing expert that matters little is left out."""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.choose import best
from moe_lab.policy import Parameter
from moe_lab.routing.base import RoutingPolicy


class DropCold(RoutingPolicy):
    """Skips a missing expert whose weight is under ``share`` of the mean of the K chosen; nothing replaces it.

    Unlike pruning it spends quality only where that saves a read. The ``keep_top`` best (one at least) always stay.
    Families that renormalise divide by the sum of what is left. Source: BigMoeOnEdge, its ``--drop-cold-experts``.
    """

    share = Parameter(0.75, 0, 2, doc="of the mean weight of the chosen: a missing expert below is skipped",
                      open_ended=True)
    keep_top = Parameter(1, 1, 8, unit="experts", doc="best experts that are always used", integer=True,
                         open_ended=True)

    @property
    def lossy(self) -> bool:
        """With a share of 0 nothing is skipped."""
        return self.span("share")[1] > 0

    @staticmethod
    def rank(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
        """Score = logit for the first K, less the cold ones; never for the others."""
        scores[:] = -np.inf
        order = best(logits, K)
        total = 0.0
        for e in order:
            total += weights[e]
        for i in range(len(order)):
            e = order[i]
            if i < int(params[1]) or resident[e] or weights[e] * len(order) >= params[0] * total:
                scores[e] = logits[e]
