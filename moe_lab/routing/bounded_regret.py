"""Bounded regret: as many swaps as a token can afford, and a promise about the gate mass it keeps."""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.choose import best, standby
from moe_lab.kernels.jit import copied
from moe_lab.policy import Parameter
from moe_lab.routing.base import RoutingPolicy


class BoundedRegret(RoutingPolicy):
    """Swaps missing experts for resident ones while the gate mass lost stays within ``regret`` of the original.

    mass(chosen) >= (1 - regret) · mass(original K), for every token; at most ``most_swaps`` swaps. The weakest missing
    expert goes first and the best resident one comes first, so that no other choice saves more reads within the bound.
    The idea: a hard regret and a budget of swaps, as in k3-out-of-core (issue 115); there the bound is on each swap.
    """

    regret = Parameter(0.05, 0, 1, doc="share of a token's gate mass that swaps may cost")
    most_swaps = Parameter(64, 0, 64, unit="swaps", doc="swaps of a token in a layer, at most", integer=True,
                           open_ended=True)
    keep_top = Parameter(1, 0, 8, unit="experts", doc="best experts that are always used", integer=True,
                         open_ended=True)

    @staticmethod
    def rank(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
        """Pairs of weakest missing and best resident, until the sum of their differences would pass the bound."""
        copied(logits, scores)
        order = best(logits, K)
        whole = 0.0
        for e in order:
            whole += weights[e]
        others, taken, lost = standby(weights, logits, resident, order), 0, 0.0
        for i in range(len(order) - 1, int(params[2]) - 1, -1):
            out = order[i]
            if resident[out]:
                continue
            if taken == len(others) or taken >= params[1]:
                break
            lost += np.float64(weights[out]) - weights[others[taken]]
            if lost > params[0] * whole:
                break
            scores[out], scores[others[taken]] = -np.inf, np.inf
            taken += 1
