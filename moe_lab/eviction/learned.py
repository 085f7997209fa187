"""Learned eviction: a small network guesses how far away each expert's next use is; the furthest leaves.

Knows the network, its inputs and how it is run. How it is trained stands in ``moe_lab.eviction.training``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from moe_lab.eviction.base import EvictionPolicy
from moe_lab.kernels.layout import TOP_K
from moe_lab.parameters import Table

if TYPE_CHECKING:
    from moe_lab.trace import Trace

INPUTS, HIDDEN = 5, 8
HALF_LIVES = (4.0, 16.0, 64.0)
"""Tokens; one faded count of uses, in log2, for each."""
GAP = len(HALF_LIVES)
"""Column of the distance between the last two uses, in tokens, log2; 0 where there was one use."""
FAINT = -8.0
"""Least log2 of a faded count that the network sees."""
SIZE = INPUTS + INPUTS * HIDDEN + 2 * HIDDEN
"""Numbers of the network: the straight part, then per hidden unit its weights, bias and output."""
UNTRAINED = (0.0, 0.0, -1.0, 0.0, 0.0, *([0.0] * (SIZE - INPUTS)))
"""Minus the count with a half-life of 16 tokens: aged LFU."""


class LearnedEviction(EvictionPolicy):
    """The expert whose next use is expected latest leaves: keep = -f(recency, frequency), f a small network.

    f(x) = a · x + sum over 8 hidden units of c_h · max(0, w_h · x + b_h) estimates the log2 of the tokens to the next
    use, clipped. Inputs x, times in tokens: log2(1 + age of the last use); the log2 of uses that fade by half every 4,
    16 and 64 tokens; log2 of the distance between the last two uses. Untrained it is aged LFU with a half-life of 16
    tokens; :meth:`fit` trains it from a trace in seconds.

    Sources: FlashMoE, arXiv 2601.17063 (a network over recency and frequency that imitates Belady's choice); CECAR (one
    that predicts the reuse distance).

    State: four columns, the faded counts at the last use and the last distance.

    Example:
        >>> from moe_lab.trace import Trace
        >>> ids = np.random.default_rng(0).integers(0, 8, (60, 1, 1))
        >>> policy = LearnedEviction.fit(Trace(ids=ids, experts=8), epochs=1)
        >>> policy.name, len(policy.weights)
        ('learned', 61)
    """

    name = "learned"
    weights = Table(UNTRAINED, doc="the network: straight part, then weights, bias and output of each hidden unit")
    columns = GAP + 1

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Minus the network's estimate. Written out, so that it runs without an allocation."""
        own, K = stats.own, max(state[TOP_K], 1.0)
        age = (now - stats.last_use[expert]) / K
        x0, x4 = math.log2(1.0 + age), own[GAP, expert]
        x1 = max(own[0, expert] - age / HALF_LIVES[0], FAINT)
        x2 = max(own[1, expert] - age / HALF_LIVES[1], FAINT)
        x3 = max(own[2, expert] - age / HALF_LIVES[2], FAINT)
        far = params[0] * x0 + params[1] * x1 + params[2] * x2 + params[3] * x3 + params[4] * x4
        for h in range(HIDDEN):
            at = INPUTS + h * (INPUTS + 2)
            unit = (params[at] * x0 + params[at + 1] * x1 + params[at + 2] * x2 + params[at + 3] * x3
                    + params[at + 4] * x4 + params[at + 5])
            if unit > 0.0:
                far += params[at + 6] * unit
        return -far

    @staticmethod
    def touch(expert, weight, hit, stats, state, params, now):  # type: ignore[no-untyped-def]
        """One more use: each count fades, then grows by 1; all in log2."""
        age = (now - stats.last_use[expert]) / max(state[TOP_K], 1.0)
        used = stats.uses[expert] > 0
        for i in range(GAP):
            faded = stats.own[i, expert] - age / HALF_LIVES[i]
            grown = max(faded, 0.0) + math.log2(1.0 + 2.0 ** -abs(faded))
            stats.own[i, expert] = grown if used else 0.0
        stats.own[GAP, expert] = math.log2(1.0 + age) if used else 0.0

    @classmethod
    def fit(cls, trace: Trace, *, horizon: int = 16, epochs: int = 12, seed: int = 0) -> LearnedEviction:
        """Train on a trace. Judge the result on other tokens, for instance on the second half of a text.

        The network is trained on the first two thirds. The last third says how far to trust it: of mixtures of the
        untrained and the trained network the one with most hits there, at a quarter and at half of the experts.

        Args:
            horizon: tokens at which the distance to the next use is clipped; shortened for a short trace.
            epochs: passes over the samples.
            seed: of the network's first weights and the order of the samples.

        Raises:
            TraceError: a trace too short to see experts come back.
        """
        from moe_lab.eviction.training import train

        policy = cls(weights=train(trace, horizon, epochs, seed))
        policy.__dict__["_trained_on"] = np.unique(trace.marks()).tobytes()
        return policy

    def seen(self, trace: Trace) -> float:
        """Share of the tokens of ``trace`` that this very policy was trained on by :meth:`fit`, found by runs of tokens
        with the same experts; a policy made from weights alone remembers nothing."""
        known = np.frombuffer(self.__dict__.get("_trained_on", b""), dtype=np.uint64)
        marks = trace.marks()
        return float(np.isin(marks, known).mean()) if len(marks) and len(known) else 0.0
