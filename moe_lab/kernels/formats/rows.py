"""Experts whose matrices lie as a file has them: gate rows, up rows, down rows, one after the other.

Knows the order of things in such a slot and the products over it, for any type of number that ``stored`` knows; a
file's bytes go straight into it.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.activation import gated
from moe_lab.kernels.expert import Steps
from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import ACTIVATION, GATES, GROUP, HIDDEN, OUT, WIDTH, H, U, X, filled
from moe_lab.kernels.pointers import floats_at
from moe_lab.kernels.streams import PRODUCTS


@jit(helper=True)
def _prepare(job):  # type: ignore[no-untyped-def]
    """x is taken as it is."""


def row_steps(name: str, number: str, item_bytes: int) -> Steps:
    """The steps over numbers of ``item_bytes``, whose type ``number`` is one of ``streams.PRODUCTS``."""
    product = PRODUCTS[number]

    @jit(helper=True)
    def up(job, weights, k, begin, end):  # type: ignore[no-untyped-def]
        D, F = job[WIDTH], job[HIDDEN]
        place, row = 4 * k * filled(F, GROUP), item_bytes * D
        h, u = floats_at(job[H] + place, F)[begin:end], floats_at(job[U] + place, F)[begin:end]
        h[:], u[:] = 0, 0
        product(weights + row * begin, end - begin, D, job[X], _ONE, h, 0)
        product(weights + row * (F + begin), end - begin, D, job[X], _ONE, u, 0)
        gated(h, u, job[ACTIVATION])

    @jit(helper=True)
    def down(job, weights, k, begin, end):  # type: ignore[no-untyped-def]
        D, F = job[WIDTH], job[HIDDEN]
        downs, gate = weights + item_bytes * F * (2 * D + begin), floats_at(job[GATES], k + 1)[k]
        product(downs, end - begin, F, job[H] + 4 * k * filled(F, GROUP), gate, floats_at(job[OUT], D)[begin:end], 0)

    return Steps(name, _prepare, up, down)


_ONE = np.float32(1)
