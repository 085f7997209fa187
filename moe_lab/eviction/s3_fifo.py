"""S3-FIFO: a small queue to prove oneself in, a main queue with second chances, and a memory of who failed."""

from __future__ import annotations

import numpy as np

from moe_lab.eviction.base import EvictionPolicy
from moe_lab.kernels.layout import OWN, SLOTS
from moe_lab.kernels.queue import to_the_back
from moe_lab.policy import Parameter

WHERE, USES, STAMP, GHOST = range(4)
SMALL, MAIN = 1.0, 2.0
LAST, SMALL_FIRST, GHOSTS, COMING = range(OWN, OWN + 4)


class S3FIFO(EvictionPolicy):
    """Three FIFO queues: small, main and ghosts.

    Newcomers join the small queue, or the main one if they are remembered as ghosts. Uses count to 3. Room is made in
    the small queue while it holds ``small`` of the slots or more (one at least): from its front, who was used twice or
    more goes to the main queue with its count at 0, the first of the others leaves and becomes a ghost. Else, or if
    nobody there may leave, in the main queue: who has a count loses 1 and goes to the back, the first without leaves.
    As many ghosts are remembered as the main queue has slots. Of the experts of the present token those in the small
    queue without two uses stay in place, those in the main queue are passed like any with a count.

    Source: Yang, Zhang, Qiu, Yue, Rashmi, FIFO Queues Are All You Need for Cache Eviction, SOSP 2023, algorithm 1.

    State: per expert its queue, count, place and time as a ghost; the last place, the queue to take from, the number
    of ghosts ever, the expert that room is made for.
    """

    small = Parameter(0.1, 0, 1, doc="share of the slots that newcomers prove themselves in")
    name = "s3-fifo"
    columns = 4
    state_size = 4

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Rounds of the hand, then the place in the queue."""
        own = stats.own
        count = own[USES, expert]
        if own[WHERE, expert] == MAIN:
            level = 1.0 + 2.0 * count
        elif own[WHERE, expert] == SMALL and state[SMALL_FIRST] == 0.0:
            level = 9.0 if count <= 1.0 else 10.0
        else:
            level = 0.0 if count <= 1.0 else 2.0        # 2: at the back of the main queue by then
        return level * (state[LAST] + 1.0) + own[STAMP, expert]

    @staticmethod
    def touch(expert, weight, hit, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Count a use, or let a newcomer in."""
        own = stats.own
        state[COMING] = -1.0
        if hit:
            own[USES, expert] = min(own[USES, expert] + 1.0, 3.0)
            if own[WHERE, expert] == 0.0:
                own[WHERE, expert] = SMALL
            return
        target = max(1.0, np.floor(params[0] * state[SLOTS]))
        small = 0
        for w in own[WHERE]:
            small += w == SMALL
        state[SMALL_FIRST] = 1.0 if small >= target else 0.0
        since = state[GHOSTS] - own[GHOST, expert]
        known = own[GHOST, expert] > 0.0 and since < state[SLOTS] - target
        state[LAST] += 1.0
        own[WHERE, expert], own[USES, expert], own[STAMP, expert] = MAIN if known else SMALL, 0.0, state[LAST]
        own[GHOST, expert], state[COMING] = 0.0, expert

    @staticmethod
    def left(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """What the hand did on its way to ``expert``."""
        own, coming = stats.own, int(state[COMING])
        where, uses, stamps = own[WHERE], own[USES], own[STAMP]
        was_small = where[expert] != MAIN
        if state[SMALL_FIRST] > 0.0:
            whole = not was_small or uses[expert] > 1.0         # it went through all of the small queue
            proven, place = np.empty(where.size, np.bool_), stamps[expert]
            for e in range(where.size):
                proven[e] = (where[e] == SMALL) & (uses[e] > 1.0) & (whole | (stamps[e] < place))
                where[e] = MAIN if proven[e] else where[e]
                uses[e] = 0.0 if proven[e] else uses[e]
            state[LAST] = to_the_back(stamps, proven, state[LAST])
        if where[expert] == MAIN:
            rounds, place = uses[expert], stamps[expert]
            passed = np.empty(where.size, np.bool_)
            for e in range(where.size):
                passed[e] = (where[e] == MAIN) & (stamps[e] < place)
                less = uses[e] - rounds - (1.0 if passed[e] else 0.0)
                uses[e] = uses[e] if where[e] != MAIN else less if less > 0.0 else 0.0
            state[LAST] = to_the_back(stamps, passed, state[LAST])
        elif was_small:
            state[GHOSTS] += 1.0
            own[GHOST, expert] = state[GHOSTS]
        where[expert], uses[expert], stamps[expert] = 0.0, 0.0, 0.0
        if coming >= 0 and where[coming] == MAIN:
            state[LAST] += 1.0
            stamps[coming] = state[LAST]
        state[COMING] = -1.0
        small = 0
        for w in where:
            small += w == SMALL
        state[SMALL_FIRST] = 1.0 if small >= max(1.0, np.floor(params[0] * state[SLOTS])) else 0.0
