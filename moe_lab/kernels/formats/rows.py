"""Experts whose matrices lie as a file has them: gate rows, up rows, down rows, one after the other.

Knows the order of things in such a slot and the products over it, for any type of number that ``stored`` knows; a
file's bytes go straight into it. Plain loops: LLVM makes vector instructions of them on every processor, and they read
as fast as memory allows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moe_lab.kernels.activation import gated
from moe_lab.kernels.expert import Steps
from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import ACTIVATION, GATES, GROUP, HIDDEN, OUT, WIDTH, H, U, X, filled
from moe_lab.kernels.pointers import floats_at
from moe_lab.kernels.stored import dot, dot_pair


@jit(helper=True)
def _prepare(job):  # type: ignore[no-untyped-def]
    """x is taken as it is."""


def row_steps(name: str, weights_at: Callable[..., Any], item_bytes: int) -> Steps:
    """The steps over numbers of ``item_bytes``: ``weights_at(address, count)`` is an array."""

    @jit(helper=True)
    def up(job, weights, k, begin, end):  # type: ignore[no-untyped-def]
        D, F = job[WIDTH], job[HIDDEN]
        place = 4 * k * filled(F, GROUP)
        x, h, u = floats_at(job[X], D), floats_at(job[H] + place, F), floats_at(job[U] + place, F)
        gates, ups = weights_at(weights, F * D), weights_at(weights + item_bytes * F * D, F * D)
        for r in range(begin, end):
            h[r], u[r] = dot_pair(gates[r * D : (r + 1) * D], ups[r * D : (r + 1) * D], x)
        gated(h[begin:end], u[begin:end], job[ACTIVATION])

    @jit(helper=True)
    def down(job, weights, k, begin, end):  # type: ignore[no-untyped-def]
        D, F = job[WIDTH], job[HIDDEN]
        h, out = floats_at(job[H] + 4 * k * filled(F, GROUP), F), floats_at(job[OUT], D)
        downs, gate = weights_at(weights + 2 * item_bytes * F * D, F * D), floats_at(job[GATES], k + 1)[k]
        for r in range(begin, end):
            out[r] += gate * dot(downs[r * F : (r + 1) * F], h)

    return Steps(name, _prepare, up, down)
