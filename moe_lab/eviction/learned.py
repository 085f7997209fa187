"""Learned eviction: a small network guesses how far away each expert's next use is; the furthest leaves.

Knows the network, its inputs and how it is run. How it is trained stands in ``moe_lab.eviction.training``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from moe_lab.errors import SettingError
from moe_lab.eviction.base import EvictionPolicy
from moe_lab.kernels.jit import jit
from moe_lab.kernels.layout import OWN, TOKEN, Stats
from moe_lab.parameters import Table
from moe_lab.units import seed_number, whole_number

if TYPE_CHECKING:
    from moe_lab.trace import Trace

INPUTS, HIDDEN = 5, 8
HALF_LIVES = (4.0, 16.0, 64.0)
"""Tokens; one faded count of uses, in log2, for each."""
GAP = len(HALF_LIVES)
"""Column of the distance between the last two uses, in tokens, log2; 0 where there was one use."""
FAINT = -8.0
"""Least log2 of a faded count that the network sees."""
LAST, COUNT, AGE, X, FAR = GAP + 1, GAP + 2, GAP + 5, GAP + 6, GAP + 10
"""Columns: the token of the last use, from 1, and the faded counts themselves; and, for the token at hand, the age, the
inputs but the last, and the estimate."""
ESTIMATED = OWN
"""Place in the state: the token, from 1, that the estimates are of."""
JUST_USED = -1e300
"""Stands where an expert was used since the estimates were made."""
REFRESH = 16.0
"""Tokens after which estimates are made again, even if nobody had to leave: a cache may be made smaller at any time."""
OLD = 1023
"""Tokens after which an age, in log2, and the fading of counts at a use, do not grow further."""
LOGS = np.log2(1.0 + np.arange(OLD + 1))
FADES = 2.0 ** (-np.arange(OLD + 1) / np.array(HALF_LIVES)[:, None])
SIZE = INPUTS + INPUTS * HIDDEN + 2 * HIDDEN
"""Numbers of the network: the straight part, then per hidden unit its weights, bias and output."""
UNTRAINED = (0.0, 0.0, -1.0, 0.0, 0.0, *([0.0] * (SIZE - INPUTS)))
"""Minus the count with a half-life of 16 tokens: aged LFU."""


@jit(cache=False)
def estimate_all(stats: Stats, state: np.ndarray, params: np.ndarray) -> None:
    """f of every expert at the token at hand, into the column FAR: two units at a time over all experts, which vector
    units like."""
    own = stats.own
    ages, far, x0, x1, x2, x3, x4 = own[AGE], own[FAR], own[X], own[X + 1], own[X + 2], own[X + 3], own[GAP]
    last, token = own[LAST], state[TOKEN] + 1.0
    for e in range(far.size):
        ages[e] = token - last[e]
        x0[e] = LOGS[min(int(ages[e]), OLD)]
    for i in range(GAP):
        logs, row = own[i], own[X + 1 + i]
        for e in range(far.size):
            value = logs[e] - ages[e] / HALF_LIVES[i]
            row[e] = value if value > FAINT else FAINT
    p = params
    for e in range(far.size):
        far[e] = p[0] * x0[e] + p[1] * x1[e] + p[2] * x2[e] + p[3] * x3[e] + p[4] * x4[e]
    for h in range(0, HIDDEN, 2):
        a = params[INPUTS + h * (INPUTS + 2) :]
        a0, a1, a2, a3, a4, a_bias, a_out = a[0], a[1], a[2], a[3], a[4], a[5], a[6]
        b0, b1, b2, b3, b4, b_bias, b_out = a[7], a[8], a[9], a[10], a[11], a[12], a[13]
        for e in range(far.size):
            one = a0 * x0[e] + a1 * x1[e] + a2 * x2[e] + a3 * x3[e] + a4 * x4[e] + a_bias
            two = b0 * x0[e] + b1 * x1[e] + b2 * x2[e] + b3 * x3[e] + b4 * x4[e] + b_bias
            far[e] = far[e] + a_out * (one if one > 0.0 else 0.0) + b_out * (two if two > 0.0 else 0.0)


class LearnedEviction(EvictionPolicy):
    """The expert whose next use is expected latest leaves: keep = -f(recency, frequency), f a small network.

    f(x) = a · x + sum over 8 hidden units of c_h · max(0, w_h · x + b_h) estimates the log2 of the tokens to the next
    use, clipped. Inputs x, times in tokens: log2(1 + age of the last use); the log2 of uses that fade by half every 4,
    16 and 64 tokens; log2 of the distance between the last two uses. Untrained it is aged LFU with a half-life of 16
    tokens; :meth:`fit` trains it from a trace in seconds.

    Sources: FlashMoE, arXiv 2601.17063 (a network over recency and frequency that imitates Belady's choice); CECAR (one
    that predicts the reuse distance).

    State: the faded counts at the last use and their log2, the last distance, the token of the last use; and, for the
    token at hand, ages, inputs and estimates.

    Example:
        >>> from moe_lab.trace import Trace
        >>> ids = np.random.default_rng(0).integers(0, 8, (60, 1, 1))
        >>> policy = LearnedEviction.fit(Trace(ids=ids, experts=8), epochs=1)
        >>> policy.name, len(policy.weights)
        ('learned', 61)
    """

    name = "learned"
    weights = Table(UNTRAINED, doc="the network: straight part, then weights, bias and output of each hidden unit")
    columns = FAR + 1
    state_size = 1

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Minus the last estimate; see touch for when it is made."""
        return -stats.own[FAR, expert]

    @staticmethod
    def touch(expert, weight, hit, stats, state, params, now):  # type: ignore[no-untyped-def]
        """One more use: each count fades, then grows by 1. Estimates of all experts are made before the first miss of a
        token makes room, and every 16 tokens in any case; who was used since then is kept before all others."""
        own, token = stats.own, state[TOKEN] + 1.0
        if token - state[ESTIMATED] >= (REFRESH if hit else 1.0):
            state[ESTIMATED] = token
            estimate_all(stats, state, params)
        age, used = token - own[LAST, expert], own[LAST, expert] > 0.0
        for i in range(GAP):
            count = 1.0
            if used:
                count += own[COUNT + i, expert] * FADES[i, min(int(age), OLD)]
            own[COUNT + i, expert], own[i, expert] = count, math.log2(count)
        own[GAP, expert] = LOGS[min(int(age), OLD)] if used else 0.0
        own[LAST, expert], own[FAR, expert] = token, JUST_USED

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
            SettingError: a horizon or epochs that are no number from 1, or a seed that is none.
        """
        from moe_lab.eviction.training import train

        numbers = {"horizon": whole_number(horizon), "epochs": whole_number(epochs)}
        for name, number in numbers.items():
            if number is None or number < 1:
                raise SettingError(f"{name} of {cls.__name__}.fit must be a whole number, 1 or more")
        policy = cls(weights=train(trace, horizon, epochs, seed_number(seed)))
        policy.__dict__["_trained_on"] = np.unique(trace.marks()).tobytes()
        return policy

    def seen(self, trace: Trace) -> float:
        """Share of the tokens of ``trace`` that this very policy was trained on by :meth:`fit`, found by runs of tokens
        with the same experts; a policy made from weights alone remembers nothing."""
        known = np.frombuffer(self.__dict__.get("_trained_on", b""), dtype=np.uint64)
        marks = trace.marks()
        return float(np.isin(marks, known).mean()) if len(marks) and len(known) else 0.0
