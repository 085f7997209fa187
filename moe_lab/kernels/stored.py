"""Numbers as a model's memory holds them, float32 or bfloat16 bits (uint16), and products of rows of them.

Knows two types. Sums are float32, in an order that is fixed for a machine. NumPy's forms of bfloat16 stand in
``formats.bf16``.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from moe_lab.kernels.halves import nearest_bf16, widened_bf16
from moe_lab.kernels.jit import jit

_f = np.float32


def value(bits):  # type: ignore[no-untyped-def]
    """A stored number as float32: float32 as it is, bfloat16 bits widened."""
    return bits if isinstance(bits, np.float32) else (np.uint32(bits) << np.uint32(16)).view(np.float32)


@overload(value, inline="always")
def _value(bits):  # type: ignore[no-untyped-def]
    return (lambda bits: widened_bf16(bits)) if bits == types.uint16 else (lambda bits: bits)


def stored(number, like):  # type: ignore[no-untyped-def]
    """A float32 as a place of the type of ``like`` holds it: itself, or rounded to the nearest bfloat16."""
    raise NotImplementedError       # the kernels' own; see _stored


@overload(stored)
def _stored(number, like):  # type: ignore[no-untyped-def]
    return (lambda number, like: nearest_bf16(number)) if like == types.uint16 else (lambda number, like: number)


@jit(reorder=True, helper=True)
def dot(w, x):  # type: ignore[no-untyped-def]
    """Sum of w[k] * x[k]; ``w`` stored, ``x`` float32."""
    total = _f(0)
    for k in range(x.size):
        total += value(w[k]) * x[k]
    return total
