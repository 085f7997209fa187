"""CECAR: residents get a bonus graded by how soon they are expected again."""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.choose import best
from moe_lab.kernels.jit import copied
from moe_lab.kernels.layout import OWN
from moe_lab.policy import Parameter
from moe_lab.routing.base import RoutingPolicy

MOST = 1024
"""Experts whose uses are remembered; those with higher ids count as never used."""


class Cecar(RoutingPolicy):
    """Adds to a resident expert: strength · (best logit - K-th logit) · (1 - d / d_max), d its expected distance.

    d is the expected number of tokens to the next use, d_max the largest d among the residents: whoever will be wanted
    soon is worth using now, whoever will leave is not. Expected is 1 over the share of tokens that used the expert,
    older tokens fading by half every ``recall`` tokens. The ``keep_top`` best are used whatever is resident.

    Source: CECAR, cache and expert co-aware routing, where a small network predicts d (in its code, before the bonus,
    the eviction score). A routing policy here sees no eviction scores and counts by itself.

    State: a faded share per expert.
    """

    strength = Parameter(1, 0, 2, doc="times the distance from the best to the K-th logit", open_ended=True)
    recall = Parameter(32, 1, 1024, unit="tokens", doc="tokens until a use counts half in the expected distance")
    keep_top = Parameter(0, 0, 8, unit="experts", doc="best experts that are always used", integer=True,
                         open_ended=True)
    state_size = MOST

    @property
    def lossy(self) -> bool:
        """Without strength it is the original routing."""
        return self.span("strength")[1] > 0

    @staticmethod
    def rank(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
        """Score = logit + bonus in float32; then the token's own uses are counted."""
        copied(logits, scores)
        order = best(logits, K)
        if len(order) == 0:
            return
        apart = np.float64(logits[order[0]]) - logits[order[-1]]
        least = np.inf
        for e in range(logits.size):
            if resident[e]:
                least = min(least, state[OWN + e] if e < MOST else 0.0)
        for e in range(logits.size):
            if resident[e]:
                share = state[OWN + e] if e < MOST else 0.0
                nearness = 1.0 - (least + 1e-3) / (share + 1e-3)        # d / d_max, with d = 1 / (share + 1e-3)
                scores[e] = logits[e] + np.float32(params[0] * apart * nearness)
        if params[0] > 0.0:
            for e in best(logits, int(params[2])):
                scores[e] = np.inf
        fade = 0.5 ** (1.0 / params[1])
        for e in range(min(logits.size, MOST)):
            state[OWN + e] *= fade
        for e in best(scores, K):
            if e < MOST:
                state[OWN + e] += 1.0 - fade
