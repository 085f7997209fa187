"""ARC: recency and frequency share the slots, and ghosts of the evicted say who needs more."""

from __future__ import annotations

from moe_lab.eviction.base import EvictionPolicy
from moe_lab.kernels.layout import OWN, SLOTS

WHERE, STAMP = 0, 1
ONCE, TWICE, ONCE_GHOST, TWICE_GHOST = 1.0, 2.0, 3.0, 4.0
TARGET, ONCE_FIRST, FORGET, GHOSTS = range(OWN, OWN + 4)


class ARC(EvictionPolicy):
    """Two LRU lists, of experts used once and used again, each with a list of ghosts that were evicted from it.

    ``p`` is how many slots the once-used should have. A miss that finds its expert among their ghosts raises p by
    max(1, |ghosts of the others| / |own ghosts|), one among the ghosts of the twice-used lowers it likewise. The least
    recently used leaves from the once-used if they hold more than p (or p exactly, and the newcomer was a ghost of the
    twice-used), else from the others; where all of a list are experts of the present token, from the other list. No
    more ghosts are kept than make C once-used with their ghosts, and 2 C altogether.

    Source: Megiddo, Modha, ARC: A Self-Tuning, Low Overhead Replacement Cache, FAST 2003, figure 4.

    State: per expert its list and when it became a ghost; p, the list to take from, whether the next to leave is
    forgotten, and a count of ghosts.
    """

    columns = 2
    state_size = 4

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """The last use; the other list after the one to take from."""
        once = stats.own[WHERE, expert] != TWICE
        return float(stats.last_use[expert]) + (0.0 if once == (state[ONCE_FIRST] > 0.0) else now + 1.0)

    @staticmethod
    def touch(expert, weight, hit, stats, state, params, now):  # type: ignore[no-untyped-def]
        """A hit joins the twice-used; a miss moves p, forgets a ghost and says which list gives way."""
        where, C, was = stats.own[WHERE], state[SLOTS], stats.own[WHERE, expert]
        if hit:
            where[expert] = TWICE
            return
        once = twice = once_ghosts = twice_ghosts = 0
        for w in where:
            once += w == ONCE
            twice += w == TWICE
            once_ghosts += w == ONCE_GHOST
            twice_ghosts += w == TWICE_GHOST
        state[FORGET], forget = 0.0, 0.0
        if was == ONCE_GHOST:
            state[TARGET] = min(C, state[TARGET] + max(1.0, twice_ghosts / once_ghosts))
        elif was == TWICE_GHOST:
            state[TARGET] = max(0.0, state[TARGET] - max(1.0, once_ghosts / twice_ghosts))
        elif once + once_ghosts >= C:
            forget = ONCE_GHOST
            state[FORGET] = 1.0 if once >= C else 0.0
        elif once + twice + once_ghosts + twice_ghosts >= 2.0 * C:
            forget = TWICE_GHOST
        if forget > 0.0 and state[FORGET] == 0.0:
            oldest = -1
            for e in range(where.size):
                if where[e] == forget and (oldest < 0 or stats.own[STAMP, e] < stats.own[STAMP, oldest]):
                    oldest = e
            if oldest >= 0:
                where[oldest] = 0.0
        more = once > state[TARGET] or (was == TWICE_GHOST and once == state[TARGET])
        state[ONCE_FIRST] = 1.0 if state[FORGET] > 0.0 or (once > 0 and more) else 0.0
        where[expert] = TWICE if was >= ONCE_GHOST else ONCE

    @staticmethod
    def left(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """The evicted one becomes a ghost of its list, unless it is to be forgotten."""
        state[GHOSTS] += 1.0
        stats.own[STAMP, expert] = state[GHOSTS]
        if stats.own[WHERE, expert] == TWICE:
            stats.own[WHERE, expert] = TWICE_GHOST
        else:
            stats.own[WHERE, expert] = 0.0 if state[FORGET] > 0.0 else ONCE_GHOST
        state[FORGET] = 0.0
