"""CLOCK: first in, first out, with a second chance for whoever was used."""

from __future__ import annotations

from moe_lab.eviction.base import EvictionPolicy
from moe_lab.kernels.layout import OWN
from moe_lab.kernels.queue import to_the_back

STAMP, USED = 0, 1
LAST, COMING = OWN, OWN + 1


class Clock(EvictionPolicy):
    """The hand goes round the residents in order of arrival; who was used since it last passed is passed once more.

    A use sets an expert's mark. Where room is needed the hand takes the mark from each marked expert at the front of
    the queue and sends it to the back; the first one without a mark leaves. Experts of the present token are stepped
    over once they have no mark. Source: Corbato, A Paging Experiment with the Multics System, 1968.

    State: per expert its place in the queue and its mark; the last place, and the expert that room is made for.
    """

    columns = 2
    state_size = 2

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """The place in the queue; the marked ones after all others, in the order of a second round."""
        return stats.own[STAMP, expert] + stats.own[USED, expert] * (state[LAST] + 1.0)

    @staticmethod
    def touch(expert, weight, hit, stats, state, params, now):  # type: ignore[no-untyped-def]
        """A use marks; a new expert joins the queue without a mark."""
        stats.own[USED, expert], state[COMING] = (1.0 if hit else 0.0), -1.0
        if not hit:
            state[LAST] += 1.0
            stats.own[STAMP, expert], state[COMING] = state[LAST], expert

    @staticmethod
    def left(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Whom the hand passed on its way to ``expert`` lost the mark and went to the back; the new one goes last."""
        stamps, used = stats.own[STAMP], stats.own[USED]
        passed = (used > 0.0) & ((stamps < stamps[expert]) | (used[expert] > 0.0))
        passed[expert] = False
        for e in range(used.size):
            if passed[e]:
                used[e] = 0.0
        stamps[expert], used[expert] = 0.0, 0.0
        state[LAST] = to_the_back(stamps, passed, state[LAST])
        coming = int(state[COMING])
        if coming >= 0:
            state[LAST] += 1.0
            stamps[coming], state[COMING] = state[LAST], -1.0
