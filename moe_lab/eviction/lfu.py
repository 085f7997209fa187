"""Least frequently used."""

from __future__ import annotations

from moe_lab.eviction.base import EvictionPolicy


class LFU(EvictionPolicy):
    """The expert used least leaves: keep is its uses since the start, kept after eviction.

    Ties, frequent at the start, go to the least recently used.
    """

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Keep = uses."""
        return float(stats.uses[expert])
