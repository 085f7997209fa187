"""Experts of quantised panels: pairs of a gate and an up panel for every 16 hidden rows, then the panels of down.

Knows how panels (``panels``) make an expert, and the steps over them; what a number means inside a block is the
business of ``q8`` and ``q4``. Widths are filled up with zeros: columns to groups of 32, rows to panels of 16. An expert
is one stream of bytes that a token reads front to back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moe_lab.kernels.activation import gated
from moe_lab.kernels.crew import run
from moe_lab.kernels.expert import Steps
from moe_lab.kernels.groups import quantise
from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import (
    ACTIVATION,
    ARENA,
    COUNT,
    FIELDS,
    GATES,
    GROUP,
    H_BYTES,
    H_SCALES,
    H_SUMS,
    HIDDEN,
    OUT,
    PANEL,
    PART,
    PHASE,
    PLACES,
    TOP_K,
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
from moe_lab.kernels.panels import BLOCK, SCALES, products, row_products
from moe_lab.kernels.pointers import array_at, floats_at


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


@jit(helper=True)
def quantise_vector(x, size, bytes, scales, sums, spare, above):  # type: ignore[no-untyped-def]
    """``quantise`` of ``size`` numbers at address ``x``, the last group filled up; ``spare`` has room for a group."""
    full, left = size // GROUP, size % GROUP
    quantise(x, full, bytes, scales, sums, above)
    if left:
        some, rest = floats_at(x + 4 * GROUP * full, left), floats_at(spare, GROUP)
        for i in range(GROUP):
            rest[i] = some[i] if i < left else np.float32(0)
        quantise(spare, 1, bytes + GROUP * full, scales + 4 * full, sums + 4 * full, above)


def block_steps(bits: int, path: str) -> Steps:
    """The steps over numbers of ``bits`` bits, with the products of a path of ``instructions``."""
    (panel, above), size = products(path, bits), BLOCK[bits]

    @jit(helper=True)
    def prepare(job):  # type: ignore[no-untyped-def]
        quantise_vector(job[X], job[WIDTH], job[X_BYTES], job[X_SCALES], job[X_SUMS], job[PART], above)

    @jit(helper=True)
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

    @jit(helper=True)
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


ROWS = 128
"""Tokens that share one reading of an expert's weights; more are taken in turns."""
UP_PANELS, DOWN_PANELS = 2, 8
"""Pairs of panels, and panels, that are one piece."""
PHASES = ("x to bytes, a token a piece", "gate and up, pairs of panels", "activation and bytes, a token a piece",
          "down, panels")
"""What is done one after the other; the pieces of each in any order."""


def rows_piece_kernel(bits: int, path: str) -> Callable[..., Any]:
    """A piece of the work on at most ROWS tokens of one expert, ``(address of the block, number)``: see ``PHASES``."""
    (one, two), above, size = row_products(path, bits), products(path, bits).above, BLOCK[bits]

    @jit(name=f"piece of rows q{bits} {path}")
    def piece(address, item):  # type: ignore[no-untyped-def]
        job = array_at(address, (len(FIELDS),), np.int64)
        D, F, n, phase = job[WIDTH], job[HIDDEN], job[COUNT], job[PHASE]
        wide, deep = filled(D, GROUP), filled(F, GROUP)
        across, within = wide // GROUP, deep // GROUP
        places = array_at(job[PLACES], (n,), np.int64)
        if phase == 0:
            x, at = job[X] + 4 * D * (places[item] // job[TOP_K]), 4 * item * across
            quantise_vector(x, D, job[X_BYTES] + item * wide, job[X_SCALES] + at, job[X_SUMS] + at,
                            job[PART] + 4 * wide * item, above)
        elif phase == 1:
            step = across * size
            for p in range(UP_PANELS * item, min(UP_PANELS * (item + 1), filled(F, PANEL) // PANEL)):
                two(job[ARENA] + 2 * p * step, across, n, job[X_BYTES], job[X_SCALES], job[X_SUMS], job[H] + 64 * p,
                    job[U] + 64 * p, 4 * deep)
        elif phase == 2:
            h, at = job[H] + 4 * item * deep, 4 * item * within
            gated(floats_at(h, F), floats_at(job[U] + 4 * item * deep, F), job[ACTIVATION])
            quantise(h, within, job[H_BYTES] + item * deep, job[H_SCALES] + at, job[H_SUMS] + at, above)
        else:
            first, step = job[ARENA] + 2 * (filled(F, PANEL) // PANEL) * across * size, within * size
            begin, end = DOWN_PANELS * item, min(DOWN_PANELS * (item + 1), filled(D, PANEL) // PANEL)
            for p in range(begin, end - 1, 2):
                part = job[PART] + 64 * p
                two(first + p * step, within, n, job[H_BYTES], job[H_SCALES], job[H_SUMS], part, part + 64, 4 * wide)
            if (end - begin) % 2:
                one(first + (end - 1) * step, within, n, job[H_BYTES], job[H_SCALES], job[H_SUMS],
                    job[PART] + 64 * (end - 1), 4 * wide)
            for m in range(n):
                found, out = floats_at(job[PART] + 4 * m * wide, D), floats_at(job[OUT] + 4 * D * places[m], D)
                gate = floats_at(job[GATES], places[m] + 1)[places[m]]
                for r in range(PANEL * begin, min(PANEL * end, D)):
                    out[r] = gate * found[r]

    return piece


@jit
def rows_kernel(crew, piece, job, x, slot, places, gates, out):  # type: ignore[no-untyped-def]
    """``Format.ffn_rows`` with the block of a job of ROWS, and the addresses of a crew (0: none) and of
    ``rows_piece_kernel``'s machine code. The bits are those of one token after the other, but each panel is multiplied
    by all tokens of a turn while it is near."""
    D, F = job[WIDTH], job[HIDDEN]
    job[ARENA], job[X], job[GATES], job[OUT] = slot.ctypes.data, x.ctypes.data, gates.ctypes.data, out.ctypes.data
    job[TOP_K] = out.shape[0] // x.shape[0]
    ups = filled(filled(F, PANEL) // PANEL, UP_PANELS) // UP_PANELS
    downs = filled(filled(D, PANEL) // PANEL, DOWN_PANELS) // DOWN_PANELS
    for first in range(0, places.size, ROWS):
        n = min(ROWS, places.size - first)
        job[COUNT], job[PLACES] = n, places[first:].ctypes.data
        for phase, pieces in enumerate((n, ups, n, downs)):
            job[PHASE] = phase
            run(crew, np.int64(job.ctypes.data), piece, pieces, 0)
