"""Random numbers without a generator: a hash of whole numbers.

Knows no state, so that what is random can be repeated draw by draw, in any order and on any thread.
"""

from __future__ import annotations

from moe_lab.kernels.jit import jit


@jit(cache=False)
def mix(x: int) -> int:
    """A whole number of 31 bits spread over 31 bits; products stay below 2^62, in Python and in machine code."""
    x = ((x >> 15) ^ x) * 0x2C1B3C6D & 0x7FFFFFFF
    x = ((x >> 12) ^ x) * 0x297A2D39 & 0x7FFFFFFF
    return (x >> 15) ^ x


@jit
def noise(seed: int, layer: int, draw: int, item: int) -> float:
    """A number in [0, 1) for ``item`` of a draw: the same for the same four whole numbers.

    Example:
        >>> noise(0, 1, 2, 3) == noise(0, 1, 2, 3), 0 <= noise(0, 1, 2, 3) < 1
        (True, True)
    """
    x = mix(seed & 0x7FFFFFFF)
    x = mix(x ^ (seed >> 31 & 0x7FFFFFFF))
    x = mix(x + layer & 0x7FFFFFFF)
    x = mix(x ^ (draw & 0x7FFFFFFF))
    x = mix(x + (draw >> 31) & 0x7FFFFFFF)
    x = mix(x ^ item)
    return x / 2147483648.0
