"""Experts in four bits a number: groups of 32 weights share a float16 scale, 4.5 bits a weight.

Knows what a number means: weight = scale * number, numbers from -8 to 7, kept plus 8 in half a byte. The scale may be
negative: the extreme of the group lies at the end where there is one number more. It is searched: for each of six
scales that put the extreme at 6.5 to 9 the numbers are taken, and with them the scale that fits best (least squares);
of these the one that leaves the smallest squared error stays. That is within 0.2 % of an exhaustive search on normal
weights. A group that holds NaN or infinity, or whose scale would exceed float16, decodes to NaN.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.activation import ROUND, ROUND_BITS
from moe_lab.kernels.formats.blocks import in_panels
from moe_lab.kernels.formats.quantised import Code
from moe_lab.kernels.halves import nearest_f16, widened_f16
from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import GROUP, PANEL
from moe_lab.kernels.panels import SCALES
from moe_lab.kernels.pointers import bytes_at, shorts_at

BITS = 4
ENDS = (6.5, 7.0, 7.5, 8.0, 8.5, 9.0)
"""Where the search puts the extreme of a group."""
TINY = np.float32(1e-7)
"""A group whose largest magnitude is smaller counts as zeros: float16 has no such scale."""

_f, _i = np.float32, np.int32


@jit(reorder=True, cache=False)
def _fit(values, inverse):  # type: ignore[no-untyped-def]
    """Sums of value * number and of number * number, the numbers taken with the scale 1 / ``inverse``."""
    cross, square = _f(0), _f(0)
    for i in range(GROUP):
        number = np.rint(_f(values[i] * inverse))
        number = min(max(number, _f(-8)), _f(7))
        cross += values[i] * number
        square += number * number
    return cross, square


@jit(cache=False)
def write_group(values, block, row):  # type: ignore[no-untyped-def]
    """See ``Code``."""
    bits = values.view(_i)
    low, high, top = _f(0), _f(0), _i(0)
    for i in range(GROUP):
        top = max(top, _i(bits[i] & _i(0x7FFFFFFF)))            # as integers, so that NaN counts as the largest
        low, high = min(low, values[i]), max(high, values[i])
    largest = _i(top).view(_f)
    scale = largest
    if TINY <= largest < _f(np.inf):
        extreme, best = high if high >= -low else low, _f(-1)
        for end in ENDS:
            cross, square = _fit(values, _f(-end) / extreme)
            gain = cross * cross / square
            if gain > best:
                best, scale = gain, cross / square
    half = nearest_f16(scale)
    shorts_at(block, PANEL)[row] = half
    scale = widened_f16(half)
    usable = largest >= TINY and scale != 0 and np.isfinite(scale)
    inverse = _f(1) / scale if usable else _f(0)
    pairs = bytes_at(block + SCALES, PANEL * GROUP // 2)
    for i in range(GROUP // 2):
        pairs[64 * (i // 4) + 4 * row + i % 4] = _number(values[i], inverse) | (_number(values[i + 16], inverse) << 4)


@jit(cache=False)
def _number(value, inverse):  # type: ignore[no-untyped-def]
    if inverse == 0:
        return _i(8)
    scaled = min(max(_f(value * inverse), _f(-8)), _f(7))
    return _i(_i(_f(scaled + ROUND).view(_i) - ROUND_BITS) + _i(8))


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
        numbers = np.clip(np.rint(safe * (_f(-end) / extreme)), -8, 7).astype(np.float64)
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
