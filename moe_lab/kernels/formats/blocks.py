"""Experts of quantised panels: pairs of a gate and an up panel for every 16 hidden rows, then the panels of down.

Knows how panels (``panels``) make an expert, and the steps over them; what a number means inside a block is the
business of ``q8`` and ``q4``. Widths are filled up with zeros: columns to groups of 32, rows to panels of 16. An expert
is one stream of bytes that a token reads front to back.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.activation import gated
from moe_lab.kernels.expert import Steps
from moe_lab.kernels.groups import quantise
from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import (
    ACTIVATION,
    GATES,
    GROUP,
    H_BYTES,
    H_SCALES,
    H_SUMS,
    HIDDEN,
    OUT,
    PANEL,
    PART,
    WIDTH,
    X_BYTES,
    X_SCALES,
    X_SUMS,
    H,
    U,
    X,
    filled,
    whole,
)
from moe_lab.kernels.panels import BLOCK, SCALES, products
from moe_lab.kernels.pointers import floats_at


def counts(rows: int, columns: int) -> tuple[int, int]:
    """Panels and groups of a matrix."""
    return whole(rows, PANEL) // PANEL, whole(columns, GROUP) // GROUP


def slot_bytes(bits: int, D: int, F: int) -> int:
    """Bytes of one expert."""
    (deep, across), (wide, down) = counts(F, D), counts(D, F)
    return (2 * deep * across + wide * down) * BLOCK[bits]


def matrices(bits: int, slot: np.ndarray, D: int, F: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views of the blocks of gate, up and down, each (panels, groups, bytes of a block) uint8."""
    (deep, across), (wide, down), size = counts(F, D), counts(D, F), BLOCK[bits]
    first = 2 * deep * across * size
    pairs = slot[:first].reshape(deep, 2, across, size)
    return pairs[:, 0], pairs[:, 1], slot[first : first + wide * down * size].reshape(wide, down, size)


def in_panels(matrix: np.ndarray) -> np.ndarray:
    """(R, C) filled up with zeros and cut: (panels, 16, groups, 32)."""
    panels, groups = counts(*matrix.shape)
    full = np.zeros((panels * PANEL, groups * GROUP), dtype=np.float32)
    full[: matrix.shape[0], : matrix.shape[1]] = matrix
    return full.reshape(panels, PANEL, groups, GROUP)


def out_of_panels(numbers: np.ndarray, R: int, C: int) -> np.ndarray:
    """The matrix (R, C) that was cut into (panels, 16, groups, 32)."""
    return numbers.reshape(numbers.shape[0] * PANEL, -1)[:R, :C]


def scales_of(blocks: np.ndarray) -> np.ndarray:
    """A view of the scales: (panels, groups, 16) float16."""
    return blocks[..., :SCALES].view(np.float16)


def block_steps(bits: int, path: str) -> Steps:
    """The steps over numbers of ``bits`` bits, with the products of a path of ``instructions``."""
    (panel, above), size = products(path, bits), BLOCK[bits]

    @jit(cache=False)
    def prepare(job):  # type: ignore[no-untyped-def]
        D = job[WIDTH]
        full, left = D // GROUP, D % GROUP
        quantise(job[X], full, job[X_BYTES], job[X_SCALES], job[X_SUMS], above)
        if left:
            x, rest = floats_at(job[X], D), floats_at(job[PART], GROUP)
            for i in range(GROUP):
                rest[i] = x[full * GROUP + i] if i < left else np.float32(0)
            quantise(job[PART], 1, job[X_BYTES] + full * GROUP, job[X_SCALES] + 4 * full, job[X_SUMS] + 4 * full, above)

    @jit(cache=False)
    def up(job, weights, k, begin, end):  # type: ignore[no-untyped-def]
        """Rows ``begin`` (a multiple of 32) to ``end``, and their bytes for down."""
        groups, deep = filled(job[WIDTH], GROUP) // GROUP, filled(job[HIDDEN], GROUP)
        step = groups * size
        h, u = job[H] + 4 * k * deep, job[U] + 4 * k * deep
        for p in range(begin // PANEL, filled(end, PANEL) // PANEL):
            at = weights + 2 * p * step
            panel(at, groups, job[X_BYTES], job[X_SCALES], job[X_SUMS], h + 64 * p)
            panel(at + step, groups, job[X_BYTES], job[X_SCALES], job[X_SUMS], u + 64 * p)
        gated(floats_at(h + 4 * begin, end - begin), floats_at(u + 4 * begin, end - begin), job[ACTIVATION])
        group = begin // GROUP
        place = 4 * (k * (deep // GROUP) + group)
        quantise(h + 4 * begin, filled(end, GROUP) // GROUP - group, job[H_BYTES] + k * deep + begin,
                 job[H_SCALES] + place, job[H_SUMS] + place, above)

    @jit(cache=False)
    def down(job, weights, k, begin, end):  # type: ignore[no-untyped-def]
        """Rows ``begin`` (a multiple of 16) to ``end``."""
        D, F = job[WIDTH], job[HIDDEN]
        deep = filled(F, GROUP)
        groups = deep // GROUP
        step, place = groups * size, 4 * k * groups
        first = weights + 2 * (filled(F, PANEL) // PANEL) * (filled(D, GROUP) // GROUP) * size
        for p in range(begin // PANEL, filled(end, PANEL) // PANEL):
            panel(first + p * step, groups, job[H_BYTES] + k * deep, job[H_SCALES] + place, job[H_SUMS] + place,
                  job[PART] + 64 * p)
        part, out, gate = floats_at(job[PART], D), floats_at(job[OUT], D), floats_at(job[GATES], k + 1)[k]
        for r in range(begin, end):
            out[r] += gate * part[r]

    return Steps(f"q{bits} {path}", prepare, up, down)
