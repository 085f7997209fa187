"""The experts of one token: x prepared once, then for each expert gate and up, the activation, and down.

Knows the order of things and no weight format: a format supplies three functions over a ``Job``'s block.
``prepare(job)`` makes of x what its products take; ``up(job, weights, k, begin, end)`` computes rows ``begin`` to
``end`` of the hidden layer of the k-th expert, whose weights lie at address ``weights``; ``down(job, weights, k,
begin, end)`` adds rows of its output, times its gate, to ``out``. Every number is computed by one call and sums run
over the experts in order, so it does not matter to a single bit how rows are cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import GATES, HIDDEN, OUT, WIDTH, X


class Steps(NamedTuple):
    """What a format supplies, and the name that tells its machine code from others."""

    name: str
    prepare: Callable[..., Any]
    up: Callable[..., Any]
    down: Callable[..., Any]


def token_kernel(steps: Steps) -> Callable[..., Any]:
    """The kernel of one token: ``(block, x (D,), arena (S, B), slots (K,), gates (K,), out (D,))``."""
    prepare, up, down = steps.prepare, steps.up, steps.down

    @jit(name=f"token {steps.name}")
    def token(job, x, arena, slots, gates, out):  # type: ignore[no-untyped-def]
        job[X], job[GATES], job[OUT] = x.ctypes.data, gates.ctypes.data, out.ctypes.data
        out[:] = 0
        prepare(job)
        for k in range(slots.size):
            if slots[k] >= 0:
                weights = arena[slots[k]].ctypes.data
                up(job, weights, k, 0, job[HIDDEN])
                down(job, weights, k, 0, job[WIDTH])

    return token


def rows_kernel(steps: Steps) -> Callable[..., Any]:
    """The kernel of one expert for many tokens: ``(block, x (N, D), slot (B,), out (N, D))``."""
    prepare, up, down = steps.prepare, steps.up, steps.down

    @jit(name=f"rows {steps.name}")
    def rows(job, x, slot, one, out):  # type: ignore[no-untyped-def]
        job[GATES] = one.ctypes.data
        out[:] = 0
        for row in range(x.shape[0]):
            job[X], job[OUT] = x[row].ctypes.data, out[row].ctypes.data
            prepare(job)
            up(job, slot.ctypes.data, 0, 0, job[HIDDEN])
            down(job, slot.ctypes.data, 0, 0, job[WIDTH])

    return rows


ONE = np.ones(1, dtype=np.float32)
"""The gate of an expert that stands alone."""
