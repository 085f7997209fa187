"""Experts in signed bytes: groups of 32 weights share a float16 scale, 8.5 bits a weight.

Knows what a number means: weight = scale * byte, bytes from -127 to 127. The scale is the largest magnitude of the
group over 127, rounded up, so that nothing is cut off: no weight is off by more than half a scale. A group that
holds NaN or infinity, or whose scale would exceed float16, decodes to NaN.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.formats.blocks import in_panels
from moe_lab.kernels.formats.quantised import Code
from moe_lab.kernels.halves import ceiling_f16, widened_f16
from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import GROUP, PANEL
from moe_lab.kernels.panels import SCALES
from moe_lab.kernels.pointers import shorts_at
from moe_lab.kernels.vectors import largest_magnitude, mul, no_ints, rounded, spread, store_fours

BITS = 8
_f = np.float32


@jit(inline=True)
def write_group(first, second, block, row):  # type: ignore[no-untyped-def]
    """See ``Code``."""
    half = ceiling_f16(_f(largest_magnitude(first, second) / _f(127)))
    scale = widened_f16(half)
    shorts_at(block, PANEL)[row] = half
    p, q = no_ints(), no_ints()
    if _f(0) < scale < _f(np.inf):
        factor = spread(_f(1) / scale)
        p, q = rounded(mul(first, factor)), rounded(mul(second, factor))
    store_fours(block + SCALES + 4 * row, p)
    store_fours(block + SCALES + 4 * row + 256, q)


def quantise(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The twin of encoding: numbers (panels, 16, groups, 32) int8 and scales (panels, groups, 16) float16 of (R, C)."""
    w = in_panels(matrix)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.abs(w).max(-1) / _f(127)
        scale = exact.astype(np.float16)
        scale = np.where(scale.astype(_f) < exact, np.nextafter(scale, np.float16(np.inf)), scale)
        wide = scale.astype(_f)
        usable = (wide > 0) & np.isfinite(wide)
        numbers = np.rint(w * (_f(1) / np.where(usable, wide, _f(1)))[..., None])
    return np.where(usable[..., None], numbers, 0).astype(np.int8), scale.transpose(0, 2, 1)


def numbers_of(blocks: np.ndarray) -> np.ndarray:
    """The numbers in blocks: (panels, 16, groups, 32) int8."""
    panels, groups = blocks.shape[:2]
    lanes = blocks[..., SCALES:].view(np.int8).reshape(panels, groups, 8, PANEL, 4)
    return lanes.transpose(0, 3, 1, 2, 4).reshape(panels, PANEL, groups, GROUP)


CODE = Code("q8", BITS, 0.016, write_group, quantise, numbers_of)
