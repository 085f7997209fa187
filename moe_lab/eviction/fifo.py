"""First in, first out."""

from __future__ import annotations

from moe_lab.eviction.base import EvictionPolicy


class FIFO(EvictionPolicy):
    """The expert that came first leaves: keep is the tick of its arrival.

    Uses after the arrival change nothing.
    """

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Keep = arrived."""
        return float(stats.arrived[expert])
