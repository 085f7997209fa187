"""Least frequently and recently used: uses over age."""

from __future__ import annotations

from moe_lab.eviction.base import EvictionPolicy
from moe_lab.policy import Parameter


class LFRU(EvictionPolicy):
    """The expert with the fewest uses for its age leaves: keep = uses / age^age_power, age = now - last_use.

    Uses are counted since the start and kept after eviction. A power of 0 is LFU, a large one nearly LRU. Source: the
    baseline of that name in expert caches (SpecMD, arXiv 2602.03921, compares with it); the power is ours.
    """

    age_power = Parameter(1, 0, 4, doc="how much the time since the last use weighs against the uses")

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Keep = uses / age^age_power."""
        return stats.uses[expert] / max(now - stats.last_use[expert], 1) ** params[0]
