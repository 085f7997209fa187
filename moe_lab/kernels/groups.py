"""Activations as signed bytes: groups of 32 numbers share one float32 scale, the largest magnitude over 127.

Knows vectors of float32, and nothing of weights. Beside each group stands the sum of its bytes, times what
the kernels' unsigned form of a weight lies above the weight; it is where their integer sums begin.
A group that holds NaN or infinity has such a scale and bytes of 0: its products are NaN, and so is the sum.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import GROUP
from moe_lab.kernels.pointers import floats_at, ints_at
from moe_lab.kernels.vectors import add, largest_magnitude, load_f32, mul, no_ints, rounded, spread, store_i8, total

_f, _i = np.float32, np.int32
TINY = _f(1e-30)
"""A group whose largest magnitude is smaller counts as zeros."""
_INFINITE = _f(np.inf)


@jit(helper=True)
def quantise(x, count, bytes_to, scales_to, sums_to, above):  # type: ignore[no-untyped-def]
    """Quantise ``count`` groups of float32 at address ``x``; bytes, scales and sums go to three addresses.

    ``above``: the unsigned form of a weight minus the weight; a sum is -above * (sum of the group's bytes).
    """
    scales, sums = floats_at(scales_to, count), ints_at(sums_to, count)
    for g in range(count):
        first, second = load_f32(x), load_f32(x + 64)
        top = largest_magnitude(first, second)
        scales[g] = top / _f(127)
        factor = spread(_f(127) / top)
        p, q = no_ints(), no_ints()
        if TINY <= top < _INFINITE:
            p, q = rounded(mul(first, factor)), rounded(mul(second, factor))
        store_i8(bytes_to, p)
        store_i8(bytes_to + 16, q)
        sums[g] = _i(-above * total(add(p, q)))
        x, bytes_to = x + 4 * GROUP, bytes_to + GROUP


def quantise_slow(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The twin of ``quantise``: bytes (..., n, 32) int8, scales (..., n) float32 of x (..., N), filled with zeros.

    >>> bytes, scales = quantise_slow(np.array([1.0, -127.0, 0.4], dtype="f4"))
    >>> bytes[0, :4].tolist(), scales.tolist()
    ([1, -127, 0, 0], [1.0])
    """
    fill = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % GROUP)]
    groups = np.pad(x.astype(_f), fill).reshape(*x.shape[:-1], -1, GROUP)
    largest = np.abs(groups).max(-1)
    usable = (largest >= TINY) & np.isfinite(largest)
    inverse = _f(127) / np.where(usable, largest, _f(1))
    with np.errstate(invalid="ignore"):
        values = np.where(usable[..., None], np.rint(groups * inverse[..., None]), 0)
    return values.astype(np.int8), largest / _f(127)
