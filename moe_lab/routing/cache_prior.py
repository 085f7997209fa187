"""Cache-Prior: resident experts get a bonus in proportion to the usual spread of the logits."""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.choose import best
from moe_lab.kernels.layout import OWN
from moe_lab.policy import Parameter
from moe_lab.routing.base import RoutingPolicy


class CachePrior(RoutingPolicy):
    """Adds a bonus to the logits of resident experts: z' = z + penalty · D · resident (Cache-Prior).

    D is the mean over all tokens so far, this one included, of max(z) - min(z); ``logit_range`` can make it the
    token's own range, or a fixed number. The ``keep_top`` best experts are used whatever is resident. Source: arXiv
    2412.00099, section 3.3, equations 9 and 10; the token's own range: BigMoeOnEdge, its ``--expert-substitute``.

    State: the sum of the ranges and their number.
    """

    penalty = Parameter(0.2, 0, 1, doc="what an expert that is not resident loses, in units of the logits' range",
                        open_ended=True)
    keep_top = Parameter(1, 0, 8, unit="experts", doc="best experts that are always used", integer=True,
                         open_ended=True)
    logit_range = Parameter(0, 0, 64, unit="logits", doc="D: a number, the running mean, or the token's own range",
                            open_ended=True, words={"running": 0, "token": -1}, rare=True)
    state_size = 2

    @property
    def lossy(self) -> bool:
        """Without a penalty it is the original routing."""
        return self.span("penalty")[1] > 0

    @staticmethod
    def rank(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
        """Score = logit + bonus in float32; the head is +inf, so that rounding cannot reorder it."""
        low, high = np.inf, -np.inf
        for z in logits:                # masked experts (-inf) have no say in the range
            if np.isfinite(z):
                low, high = min(low, float(z)), max(high, float(z))
        if high >= low:
            state[OWN] += high - low
            state[OWN + 1] += 1.0
        usual = state[OWN] / max(state[OWN + 1], 1.0)
        if params[2] > 0.0:
            usual = params[2]
        elif params[2] < 0.0:
            usual = high - low if high >= low else 0.0
        bonus = np.float32(params[0] * usual)
        for e in range(len(logits)):
            scores[e] = logits[e] + bonus if resident[e] else logits[e]
        if params[0] > 0.0:
            for e in best(logits, int(params[1])):
                scores[e] = np.inf
