"""Routing policies: which experts a token uses. One a file; the table ``ROUTING`` names them.

Knows nothing of caches: a policy sees who is resident. See :class:`RoutingPolicy` for the contract, :func:`policy`
to make one from a function, and ``best(logits, n)`` to find the head of a ranking inside one.
"""

from __future__ import annotations

from typing import Literal

from moe_lab.kernels.choose import best
from moe_lab.kernels.layout import EXPERTS, LAYER, OWN, SEED, SLOTS, TOKEN, TOP_K
from moe_lab.routing.base import RoutingPolicy, policy
from moe_lab.routing.cache_prior import CachePrior
from moe_lab.routing.cumulative_threshold import CumulativeThreshold
from moe_lab.routing.max_rank import MaxRank
from moe_lab.routing.original import Original

RoutingName = Literal["original", "cache-prior", "max-rank", "cumulative-threshold"]

ROUTING: dict[str, type[RoutingPolicy]] = {
    "original": Original,
    "cache-prior": CachePrior,
    "max-rank": MaxRank,
    "cumulative-threshold": CumulativeThreshold,
}

__all__ = ["EXPERTS", "LAYER", "OWN", "ROUTING", "SEED", "SLOTS", "TOKEN", "TOP_K", "CachePrior", "CumulativeThreshold",
           "MaxRank", "Original", "RoutingName", "RoutingPolicy", "best", "policy"]
