"""Least-Stale: who belongs to the present leaves last; the others go as they came."""

from __future__ import annotations

from moe_lab.eviction.base import EvictionPolicy
from moe_lab.kernels.layout import TOKEN
from moe_lab.policy import Parameter


class LeastStale(EvictionPolicy):
    """Two FIFO queues: experts not used by the last ``fresh`` tokens are stale and leave first, oldest arrival first.

    Source: SpecMD, arXiv 2602.03921, where one cache serves all layers and stale means: not of the present forward
    pass. With slots per layer the present token's experts are protected anyhow, so fresh spans a few tokens here.

    State: one column, the number of the token that used an expert last.
    """

    fresh = Parameter(4, 1, 256, unit="tokens", doc="tokens for which a use keeps an expert in the fresh queue",
                      integer=True)
    columns = 1

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """The tick of arrival; the fresh after all stale ones."""
        stale = state[TOKEN] + 1.0 - stats.own[0, expert] > params[0]
        return float(stats.arrived[expert]) + (0.0 if stale else now + 1.0)

    @staticmethod
    def touch(expert, weight, hit, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Note the token, counted from 1."""
        stats.own[0, expert] = state[TOKEN] + 1.0
