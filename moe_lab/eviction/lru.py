"""Least recently used."""

from __future__ import annotations

from moe_lab.eviction.base import EvictionPolicy


class LRU(EvictionPolicy):
    """The expert that was used longest ago leaves: keep is the tick of its last use.

    The paper's cache: of the experts of one token the heaviest is touched first, so it is the oldest.
    """

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Keep = last_use."""
        return float(stats.last_use[expert])
