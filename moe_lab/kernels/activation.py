"""Activations of expert FFNs: scalar kernels, their numbers, the loop over a hidden layer, and NumPy twins.

Knows formulas only. ``gelu`` is the exact one (error function), ``gelu_tanh`` its tanh approximation, which
is x times the logistic function of 2 sqrt(2 / pi) (x + 0.044715 x^3).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from moe_lab.errors import SettingError
from moe_lab.kernels.jit import jit

ACTIVATIONS: dict[str, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
"""Numbers that kernels take, by name."""

_f, _i = np.float32, np.int32
ROUND = _f(12582912.0)
"""1.5 * 2^23: a small float32 plus this is rounded to an integer, to even at the half, in its lowest bits."""
ROUND_BITS = _i(0x4B400000)
"""The bits of ``ROUND``."""


def activation_number(name: str) -> int:
    """The kernels' number of an activation. ``SettingError`` for an unknown one."""
    try:
        return ACTIVATIONS[name]
    except KeyError:
        raise SettingError(f"no activation {name!r}; there are {', '.join(ACTIVATIONS)}") from None


@jit(helper=True)
def exponential(x):  # type: ignore[no-untyped-def]
    """e^x in float32 to 2 units in the last place, in operations that loops vectorise: 2^n e^r with |r| <= ln(2) / 2,
    and Cephes' polynomial (expf) for e^r. Infinity above 88.3, and 1e-38 instead of anything smaller."""
    inside = x if x < _f(88.3) else _f(88.3)
    inside = inside if inside > _f(-87.3) else _f(-87.3)
    shifted = _f(inside * _f(1.44269504) + ROUND)
    n = _i(shifted.view(_i) - ROUND_BITS)
    whole = _f(shifted - ROUND)
    r = _f(_f(inside - whole * _f(0.693359375)) + whole * _f(2.12194440e-4))
    p = _f(1.9875691500e-4) * r + _f(1.3981999507e-3)
    p = p * r + _f(8.3334519073e-3)
    p = p * r + _f(4.1665795894e-2)
    p = p * r + _f(1.6666665459e-1)
    p = p * r + _f(5.0000001201e-1)
    p = p * (r * r) + r + _f(1)
    power = _i(_i(n + _i(127)) << _i(23)).view(_f)
    return _f(p * power) if x <= _f(88.3) else _f(x * _f(np.inf))


@jit(reorder=True, helper=True)
def soft_max(x):  # type: ignore[no-untyped-def]
    """x = e^x / sum(e^x), (N,) float32."""
    top, total = _f(-np.inf), _f(0)
    for i in range(x.size):        # x.max() would take numba a second to compile
        top = max(top, x[i])
    for i in range(x.size):
        x[i] = exponential(x[i] - top)
    for i in range(x.size):
        total += x[i]
    for i in range(x.size):
        x[i] /= total


@jit(helper=True)
def activate(a, activation):  # type: ignore[no-untyped-def]
    """One float32 value through activation number ``activation``."""
    if activation == 0:
        return a / (_f(1) + exponential(-a))
    if activation == 1:
        return _f(0.5) * a * (_f(1) + math.erf(a * _f(0.7071067811865476)))
    if activation == 2:
        return a / (_f(1) + exponential(_f(-1.5957691216057308) * (a + _f(0.044715) * a * a * a)))
    return a if a > 0 or a != a else _f(0)


@jit(helper=True)
def gated(a, b, activation):  # type: ignore[no-untyped-def]
    """a = act(a) * b, (N,) float32. One loop an activation, so that each is vectorised."""
    if activation == 0:
        for i in range(a.size):
            a[i] = activate(a[i], 0) * b[i]
    elif activation == 1:
        for i in range(a.size):
            a[i] = activate(a[i], 1) * b[i]
    elif activation == 2:
        for i in range(a.size):
            a[i] = activate(a[i], 2) * b[i]
    else:
        for i in range(a.size):
            a[i] = activate(a[i], 3) * b[i]


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
