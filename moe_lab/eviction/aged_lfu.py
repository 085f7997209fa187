"""Least frequently used, with uses that fade."""

from __future__ import annotations

import math

from moe_lab.eviction.base import EvictionPolicy
from moe_lab.policy import Parameter


class AgedLFU(EvictionPolicy):
    """The expert with the least use leaves, where a use counts half after ``half_life`` uses of its layer.

    keep = log2 of the sum over its uses of 2^(-(now - tick of the use) / half_life). The logarithm orders alike and
    needs no power at every comparison. A short half-life is nearly LRU, a long one nearly LFU.

    State: one column, that logarithm at the tick of the last use.
    """

    half_life = Parameter(128, 1, 4096, unit="uses", doc="expert uses in a layer until a use counts half")
    columns = 1

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """The logarithm, faded since the last use."""
        return stats.own[0, expert] - (now - stats.last_use[expert]) / params[0]

    @staticmethod
    def touch(expert, weight, hit, stats, state, params, now):  # type: ignore[no-untyped-def]
        """One more use: log2(2^faded + 1)."""
        faded = stats.own[0, expert] - (now - stats.last_use[expert]) / params[0]
        stats.own[0, expert] = max(faded, 0.0) + math.log2(1.0 + 2.0 ** -abs(faded)) if stats.uses[expert] > 0 else 0.0
