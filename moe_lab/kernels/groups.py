"""Activations as signed bytes: groups of 32 numbers share one float32 scale, the largest magnitude over 127.

Knows vectors of float32, and nothing of weights. Beside each group stands the sum of its bytes, times what
the kernels' unsigned form of a weight lies above the weight; it is where their integer sums begin.
A group that holds NaN or infinity has such a scale and bytes of 0: its products are NaN, and so is the sum.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.activation import ROUND, ROUND_BITS
from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import GROUP
from moe_lab.kernels.pointers import bytes_at, floats_at, ints_at

_f, _i = np.float32, np.int32
TINY = _f(1e-30)
"""A group whose largest magnitude is smaller counts as zeros."""
_MAGNITUDE = _i(0x7FFFFFFF)
_INFINITE = _f(np.inf)


@jit(cache=False)
def quantise(x, count, bytes_to, scales_to, sums_to, above):  # type: ignore[no-untyped-def]
    """Quantise ``count`` groups of float32 at address ``x``; bytes, scales and sums go to three addresses.

    ``above``: the unsigned form of a weight minus the weight; a sum is -above * (sum of the group's bytes).
    """
    scales, sums = floats_at(scales_to, count), ints_at(sums_to, count)
    for g in range(count):
        values, bits = floats_at(x + 4 * GROUP * g, GROUP), ints_at(x + 4 * GROUP * g, GROUP)
        out = bytes_at(bytes_to + GROUP * g, GROUP)
        top = _i(0)
        for i in range(GROUP):
            top = max(top, _i(bits[i] & _MAGNITUDE))       # as integers, so that NaN counts as the largest
        largest = _i(top).view(_f)
        scales[g] = largest / _f(127)
        total = _i(0)
        if TINY <= largest < _INFINITE:
            inverse = _f(127) / largest
            for i in range(GROUP):
                value = _i(_f(values[i] * inverse + ROUND).view(_i) - ROUND_BITS)
                out[i] = value
                total = _i(total + value)
        else:
            out[:] = 0
        sums[g] = _i(-above * total)


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
