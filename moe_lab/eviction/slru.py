"""Segmented LRU: whoever was used twice is kept from whoever was used once."""

from __future__ import annotations

import numpy as np

from moe_lab.eviction.base import EvictionPolicy
from moe_lab.kernels.layout import SLOTS
from moe_lab.policy import Parameter

FAVOURED, DEMOTED = 0, 1


class SLRU(EvictionPolicy):
    """Two LRU lists: newcomers are on probation, a hit makes them favoured; probation empties first.

    The favoured hold at most ``favoured`` of the slots (one at least); beyond it their least recently used goes back to
    probation, as its most recent. Source: Karedla, Love, Wherry, Caching Strategies to Improve Disk System
    Performance, 1994.

    State: per expert whether it is favoured, and the time of its demotion.
    """

    favoured = Parameter(0.5, 0, 1, doc="share of the slots that the favoured may hold")
    columns = 2

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """The last use, or the demotion if that is later; the favoured after all on probation."""
        recent = max(float(stats.last_use[expert]), stats.own[DEMOTED, expert])
        return recent + stats.own[FAVOURED, expert] * (now + 1)

    @staticmethod
    def touch(expert, weight, hit, stats, state, params, now):  # type: ignore[no-untyped-def]
        """A hit favours; who is one too many is demoted, just before this use."""
        own = stats.own
        if not hit or own[FAVOURED, expert] > 0.0:
            return
        own[FAVOURED, expert] = 1.0
        most = max(1.0, np.floor(params[0] * state[SLOTS]))
        many, moved = np.sum(own[FAVOURED]), 0
        while many > most:
            oldest = -1
            for e in range(own.shape[1]):
                if own[FAVOURED, e] > 0.0 and e != expert and (
                        oldest < 0 or stats.last_use[e] < stats.last_use[oldest]):
                    oldest = e
            moved += 1
            own[FAVOURED, oldest], own[DEMOTED, oldest] = 0.0, now - 1.0 / (1 + moved)
            many -= 1.0

    @staticmethod
    def left(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Whoever comes back starts on probation."""
        stats.own[FAVOURED, expert] = 0.0
