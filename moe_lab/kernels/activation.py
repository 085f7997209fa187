"""Activations of expert FFNs: scalar kernels, their numbers, and NumPy twins.

Knows formulas only. ``gelu`` is the exact one (error function), ``gelu_tanh`` its tanh approximation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from moe_lab.kernels.jit import jit

ACTIVATIONS: dict[str, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
"""Numbers that kernels take, by name."""

_f = np.float32


@jit(cache=False)
def activate(a, activation):  # type: ignore[no-untyped-def]
    """One float32 value through activation number ``activation``."""
    if activation == 0:
        return a / (_f(1) + math.exp(-a))
    if activation == 1:
        return _f(0.5) * a * (_f(1) + math.erf(a * _f(0.7071067811865476)))
    if activation == 2:
        return _f(0.5) * a * (_f(1) + math.tanh(_f(0.7978845608028654) * (a + _f(0.044715) * a * a * a)))
    return a if a > 0 or a != a else _f(0)


def _silu(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


TWINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": _silu, "gelu": _gelu, "gelu_tanh": _gelu_tanh, "relu": lambda x: np.maximum(x, 0),
}
"""The same in NumPy, for tests and for recognising a model's activation."""
