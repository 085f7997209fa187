"""Experts in four bits a number: groups of 32 weights share a float16 scale, 4.5 bits a weight.

Knows what a number means: weight = scale * number, numbers from -8 to 7, kept plus 8 in half a byte. The scale may be
negative: the extreme of the group lies at the end where there is one number more. It is searched: for each of five
scales that put the extreme at 6.5 to 9 the numbers are taken, and with them the scale that fits best (least squares);
of these the one that leaves the smallest squared error stays. That is within 0.2 % of an exhaustive search on normal
weights. A group that holds NaN or infinity, or whose scale would exceed float16, decodes to NaN.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.formats.blocks import in_panels
from moe_lab.kernels.formats.quantised import Code
from moe_lab.kernels.halves import nearest_f16, widened_f16
from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import GROUP, PANEL
from moe_lab.kernels.panels import SCALES
from moe_lab.kernels.pointers import shorts_at
from moe_lab.kernels.vectors import (
    fma,
    largest,
    largest_magnitude,
    mul,
    negative,
    no_ints,
    plus_8,
    rounded,
    spread,
    store_fours,
    to_floats,
    total_f32,
    two_nibbles,
    within_nibble,
)

BITS = 4
ENDS = (6.5, 7.125, 7.75, 8.375, 9.0)
"""Where the search puts the extreme of a group."""
TINY = np.float32(1e-7)
"""A group whose largest magnitude is smaller counts as zeros: float16 has no such scale."""

_f = np.float32


@jit(inline=True)
def _numbers(values, factor):  # type: ignore[no-untyped-def]
    """The numbers nearest to values * ``factor``."""
    return within_nibble(rounded(mul(values, factor)))


@jit(inline=True)
def _fitting(first, second):  # type: ignore[no-untyped-def]
    """The scale that leaves the smallest squared error of those tried; some value is not zero."""
    high, low = largest(first, second), largest(negative(first), negative(second))
    inverse = _f(1) / (high if high >= low else -low)
    best_cross, best_square = _f(0), _f(1)
    for end in ENDS:
        factor = spread(_f(-end) * inverse)
        p, q = to_floats(_numbers(first, factor)), to_floats(_numbers(second, factor))
        cross, square = total_f32(fma(second, q, mul(first, p))), total_f32(fma(q, q, mul(p, p)))
        better = cross * cross * best_square > best_cross * best_cross * square
        best_cross, best_square = (cross, square) if better else (best_cross, best_square)
    return best_cross / best_square


@jit(inline=True)
def write_group(first, second, block, row):  # type: ignore[no-untyped-def]
    """See ``Code``."""
    top = largest_magnitude(first, second)
    scale = top                                     # NaN or infinity, or too small for a scale
    if TINY <= top < _f(np.inf):
        scale = _fitting(first, second)
    half = nearest_f16(scale)
    shorts_at(block, PANEL)[row] = half
    scale = widened_f16(half)
    p, q = no_ints(), no_ints()
    if top >= TINY and scale != 0 and np.isfinite(scale):
        factor = spread(_f(1) / scale)
        p, q = _numbers(first, factor), _numbers(second, factor)
    store_fours(block + SCALES + 4 * row, two_nibbles(plus_8(p), plus_8(q)))


def quantise(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The twin of encoding: numbers (panels, 16, groups, 32) int8 and scales (panels, groups, 16) float16 of (R, C)."""
    w = in_panels(matrix)
    low, high = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
    largest = np.abs(w).max(-1, keepdims=True)
    fine = (largest >= TINY) & np.isfinite(largest)
    extreme = np.where(fine, np.where(high >= -low, high, low), _f(1))
    safe = np.where(fine, w, 0)
    best, scale = np.full(extreme.shape, -1.0), np.where(fine, 0, largest).astype(np.float64)
    for end in ENDS:
        numbers = np.clip(np.rint(safe * (_f(-end) * (_f(1) / extreme))), -8, 7).astype(np.float64)
        cross, square = (safe * numbers).sum(-1, keepdims=True), (numbers * numbers).sum(-1, keepdims=True)
        gain = cross * cross / np.where(fine, square, 1)
        better = fine & (gain > best)
        best, scale = np.where(better, gain, best), np.where(better, cross / np.where(fine, square, 1), scale)
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    wide = half.astype(_f)
    usable = fine & (wide != 0) & np.isfinite(wide)
    numbers = np.clip(safe * (_f(1) / np.where(usable, wide, _f(1))), -8, 7)
    return np.where(usable, np.rint(numbers), 0).astype(np.int8), half[..., 0].transpose(0, 2, 1)


def numbers_of(blocks: np.ndarray) -> np.ndarray:
    """The numbers in blocks: (panels, 16, groups, 32) int8."""
    panels, groups = blocks.shape[:2]
    pairs = blocks[..., SCALES:].reshape(panels, groups, 4, PANEL, 4)
    halves = np.stack([pairs & 15, pairs >> 4], axis=2).astype(np.int8) - np.int8(8)     # (..., 2, 4, 16, 4)
    return halves.transpose(0, 4, 1, 2, 3, 5).reshape(panels, PANEL, groups, GROUP)


CODE = Code("q4", BITS, 0.145, write_group, quantise, numbers_of)
