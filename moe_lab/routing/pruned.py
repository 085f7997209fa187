"""Pruning: fewer experts than the model was trained to use."""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.choose import best
from moe_lab.policy import Parameter
from moe_lab.routing.base import RoutingPolicy


class Pruned(RoutingPolicy):
    """Uses only the first k' < K of the ranking, whatever is resident: k' = max(1, K - dropped).

    A baseline that spends quality on hits and misses alike. Families that renormalise divide by the sum of what is
    left. Source: arXiv 2412.00099, the baseline "pruning".
    """

    dropped = Parameter(1, 0, 16, unit="experts", doc="how many experts fewer a token uses; one always remains",
                        integer=True, open_ended=True)

    @property
    def lossy(self) -> bool:
        """With nothing dropped it is the original routing."""
        return self.span("dropped")[1] > 0

    @staticmethod
    def rank(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
        """Score = logit for the first k', never for the others."""
        scores[:] = -np.inf
        for e in best(logits, max(1, K - int(params[0]))):
            scores[e] = logits[e]
