"""One token through dense matrices: the products, norms and gated FFNs that every layer has beside its experts.

Knows matrices (N, D) in float32 or as bfloat16 bits (uint16), row after row as torch keeps them, so that a model's own
memory is read where it lies, and quantised ones (``formats.matrix``). Vectors and sums are float32. Knows no model.
The NumPy twins stand in ``decoder_slow``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from moe_lab.kernels.activation import gated
from moe_lab.kernels.formats.matrix import Matrix, vector_product
from moe_lab.kernels.jit import jit
from moe_lab.kernels.stored import dot, value
from moe_lab.kernels.streams import PRODUCTS

_f = np.float32

Weights = np.ndarray | Matrix
"""A matrix of a model: float32, bfloat16 bits (uint16), or quantised."""


class GatedFFN(NamedTuple):
    """down(act(gate x) * up x), as a shared expert or a dense layer has it."""

    gate: Weights
    """(F, D)."""
    up: Weights
    """(F, D)."""
    down: Weights
    """(D, F)."""
    door: np.ndarray
    """(D,) float32: the output is multiplied by sigmoid(door . x). Empty: it is not."""


def product(w, x, y):  # type: ignore[no-untyped-def]
    """y (N,) = w (N, D) @ x (D,), for a matrix of numbers or a quantised one."""
    raise NotImplementedError       # the kernels' own; see _product


def _strided(w, x, y):  # type: ignore[no-untyped-def]
    for r in range(w.shape[0]):
        y[r] = dot(w[r], x)


@overload(product)
def _product(w, x, y):  # type: ignore[no-untyped-def]
    if not isinstance(w, types.Array):
        kernel = vector_product(w.instance_class.bits, w.instance_class.path)
        return lambda w, x, y: kernel(w, x, y)
    if w.layout != "C" or x.layout != "C":
        return _strided
    streams = PRODUCTS[w.dtype.name]

    def rows(w, x, y):  # type: ignore[no-untyped-def]
        y[:] = 0
        streams(w.ctypes.data, w.shape[0], w.shape[1], x.ctypes.data, _f(1), y, 0)

    return rows


@jit(helper=True)
def add(y, b):  # type: ignore[no-untyped-def]
    """y += b, where there is a b."""
    for i in range(b.size):
        y[i] += b[i]


@jit(reorder=True, helper=True)
def rms_norm(x, weight, eps, y):  # type: ignore[no-untyped-def]
    """y = weight * x / sqrt(mean(x * x) + eps); y may be x."""
    total = _f(0)
    for i in range(x.size):
        total += x[i] * x[i]
    scale = _f(1) / _f(math.sqrt(total / _f(x.size) + eps))
    for i in range(x.size):
        y[i] = weight[i] * (x[i] * scale)


@jit(helper=True)
def gated_ffn(x, m, activation, h, y):  # type: ignore[no-untyped-def]
    """y (D,) += the ``GatedFFN`` ``m`` of x (D,); h (at least 2 F + D,) float32 is scratch."""
    F, D = m.gate.shape[0], m.gate.shape[1]
    g, u, out = h[:F], h[F : 2 * F], h[2 * F : 2 * F + D]
    product(m.gate, x, g)
    product(m.up, x, u)
    gated(g, u, activation)
    product(m.down, g, out)
    share = _f(1)
    if m.door.size:
        share = _f(1) / (_f(1) + math.exp(-dot(m.door, x)))
    for i in range(D):
        y[i] += share * out[i]


@jit
def look_up(table: np.ndarray, row: int, x: np.ndarray) -> None:
    """x (D,) float32 = row ``row`` of an embedding table (V, D)."""
    for i in range(x.size):
        x[i] = value(table[row, i])


@jit
def head(x: np.ndarray, norm: np.ndarray, eps: np.float32, w: Weights, h: np.ndarray, y: np.ndarray) -> None:
    """Logits y (V,) of the last hidden state x (D,): final norm, then output matrix w (V, D); h (D,) is scratch."""
    rms_norm(x, norm, eps, h)
    product(w, h, y)
