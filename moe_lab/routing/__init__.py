"""Routing policies: which experts a token uses. One a file; the table ``ROUTING`` names them.

Knows nothing of caches: a policy sees who is resident. See :class:`RoutingPolicy` for the contract, :func:`policy`
to make one from a function, and ``best(logits, n)`` to find the head of a ranking inside one.
"""

from __future__ import annotations

from typing import Literal

from moe_lab.kernels.choose import best
from moe_lab.kernels.layout import EXPERTS, LAYER, OWN, SEED, SLOTS, TOKEN, TOP_K
from moe_lab.parameters import Schedule, Table
from moe_lab.routing.base import RoutingPolicy, policy
from moe_lab.routing.bounded_regret import BoundedRegret
from moe_lab.routing.cache_prior import CachePrior
from moe_lab.routing.cecar import Cecar
from moe_lab.routing.cumulative_threshold import CumulativeThreshold
from moe_lab.routing.drop_cold import DropCold
from moe_lab.routing.max_rank import MaxRank
from moe_lab.routing.original import Original
from moe_lab.routing.pruned import Pruned
from moe_lab.routing.swap import Swap
from moe_lab.routing.tolerance_swap import ToleranceSwap

RoutingName = Literal["original", "cache-prior", "max-rank", "cumulative-threshold", "pruned", "swap", "drop-cold",
                      "tolerance-swap", "bounded-regret", "cecar"]

ROUTING: dict[str, type[RoutingPolicy]] = {
    "original": Original,
    "cache-prior": CachePrior,
    "max-rank": MaxRank,
    "cumulative-threshold": CumulativeThreshold,
    "pruned": Pruned,
    "swap": Swap,
    "drop-cold": DropCold,
    "tolerance-swap": ToleranceSwap,
    "bounded-regret": BoundedRegret,
    "cecar": Cecar,
}

__all__ = ["EXPERTS", "LAYER", "OWN", "ROUTING", "SEED", "SLOTS", "TOKEN", "TOP_K", "BoundedRegret", "CachePrior",
           "Cecar", "CumulativeThreshold", "DropCold", "MaxRank", "Original", "Pruned", "RoutingName", "RoutingPolicy",
           "Schedule", "Swap", "Table", "ToleranceSwap", "best", "policy"]
