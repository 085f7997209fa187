"""Quantising an expert: from matrices as a file has them into the blocks of a slot, panel by panel.

Knows where numbers come from and where they go; how a group of 32 becomes a scale and bytes is what ``q8`` and ``q4``
supply. Panels do not touch one another, so any of them may be made by any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moe_lab.kernels.crew import run
from moe_lab.kernels.formats.blocks import counts
from moe_lab.kernels.halves import widened_bf16, widened_f16
from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import GROUP, PANEL, filled, whole
from moe_lab.kernels.panels import BLOCK
from moe_lab.kernels.pointers import array_at, floats_at, shorts_at
from moe_lab.kernels.vectors import load_bf16, load_f32

FIELDS = ("gate", "up", "down", "slot", "width", "hidden", "kind", "item")
"""Words that say what is to be quantised: addresses, sizes, and the type of the numbers and its bytes."""
GATE, UP, DOWN, SLOT, WIDTH, HIDDEN, KIND, ITEM = range(len(FIELDS))
PIECE = 8
"""Panels of a piece."""

F32_SOURCE, BF16_SOURCE, F16_SOURCE = range(3)
_SOURCES = {np.dtype(np.float32): (F32_SOURCE, 4), np.dtype(np.uint16): (BF16_SOURCE, 2),
            np.dtype(np.float16): (F16_SOURCE, 2)}


@jit(helper=True)
def _read_some(source, kind, count, values):  # type: ignore[no-untyped-def]
    """values (32,) float32 = ``count`` numbers at address ``source``, the rest zeros."""
    values[:] = 0
    if kind == F32_SOURCE:
        numbers = floats_at(source, count)
        for i in range(count):
            values[i] = numbers[i]
    else:
        bits = shorts_at(source, count)
        for i in range(count):
            values[i] = widened_bf16(bits[i]) if kind == BF16_SOURCE else widened_f16(bits[i])


def _panel_writer(bits: int, write_group: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel that quantises one panel. ``write_group(first, second, block, row)``, of two vectors of 16 float32,
    writes scale and numbers of one row into the block at that address."""
    size = BLOCK[bits]

    @jit(helper=True)
    def panel(source, kind, item, row, rows, columns, target, values):  # type: ignore[no-untyped-def]
        """Panel of rows ``row`` to ``row`` + 16 of a matrix (rows, columns) at address ``source``; values (32,) float32
        is scratch."""
        for g in range(filled(columns, GROUP) // GROUP):
            count = min(GROUP, columns - GROUP * g)
            for r in range(PANEL):
                at = source + item * ((row + r) * columns + GROUP * g)
                if row + r < rows and count == GROUP and kind == BF16_SOURCE:
                    first, second = load_bf16(at), load_bf16(at + 32)
                elif row + r < rows and count == GROUP and kind == F32_SOURCE:
                    first, second = load_f32(at), load_f32(at + 64)
                else:
                    _read_some(at, kind, count if row + r < rows else 0, values)
                    first, second = load_f32(values.ctypes.data), load_f32(values.ctypes.data + 64)
                write_group(first, second, target + size * g, r)

    return panel


def matrix_encoder(bits: int, write_group: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel that quantises panels ``begin`` to ``end`` of one matrix (rows, columns), by addresses."""
    panel, size = _panel_writer(bits, write_group), BLOCK[bits]

    @jit(name=f"encode matrix q{bits}")
    def encode(source, kind, item, rows, columns, target, begin, end):  # type: ignore[no-untyped-def]
        values, step = np.empty(GROUP, dtype=np.float32), size * (filled(columns, GROUP) // GROUP)
        for p in range(begin, end):
            panel(source, kind, item, PANEL * p, rows, columns, target + step * p, values)

    return encode


def expert_encoder(bits: int, write_group: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel that quantises a piece of an expert, ``(address of FIELDS, number)``: panels as a slot has them."""
    panel, size = _panel_writer(bits, write_group), BLOCK[bits]

    @jit(name=f"encode q{bits}")
    def encode(address, number):  # type: ignore[no-untyped-def]
        f = array_at(address, (len(FIELDS),), np.int64)
        D, F, kind, item, slot = f[WIDTH], f[HIDDEN], f[KIND], f[ITEM], f[SLOT]
        values = np.empty(GROUP, dtype=np.float32)
        pairs, downs = 2 * (filled(F, PANEL) // PANEL), filled(D, PANEL) // PANEL
        across, within = size * (filled(D, GROUP) // GROUP), size * (filled(F, GROUP) // GROUP)
        for p in range(PIECE * number, min(PIECE * (number + 1), pairs + downs)):
            if p < pairs:
                source = f[GATE] if p % 2 == 0 else f[UP]
                panel(source, kind, item, PANEL * (p // 2), F, D, slot + across * p, values)
            else:
                target = slot + across * pairs + within * (p - pairs)
                panel(f[DOWN], kind, item, PANEL * (p - pairs), D, F, target, values)

    return encode


def encode_matrix(kernel: Callable[..., Any], matrix: np.ndarray, bits: int) -> np.ndarray:
    """A matrix (R, C) of float32, float16, or bfloat16 bits (uint16) as blocks (panels, groups, bytes) uint8."""
    kind, item = _SOURCES[matrix.dtype]
    matrix = np.ascontiguousarray(matrix)
    panels, groups = counts(*matrix.shape)
    blocks = np.empty((panels, groups, BLOCK[bits]), dtype=np.uint8)
    kernel(matrix.ctypes.data, kind, item, *matrix.shape, blocks.ctypes.data, 0, panels)
    return blocks


def encode_expert(piece: int, crew: int, gate: np.ndarray, up: np.ndarray, down: np.ndarray, slot: np.ndarray) -> None:
    """Quantise an expert with the function at ``piece`` (an ``expert_encoder``'s) and a crew (its address, 0: alone).

    Matrices of float32, of float16, or of bfloat16 bits (uint16) are read as they lie; others are made float32 first.
    """
    F, D = gate.shape
    alike = gate.dtype in _SOURCES and gate.dtype == up.dtype == down.dtype
    parts = [np.ascontiguousarray(part, part.dtype if alike else np.float32) for part in (gate, up, down)]
    panels = 2 * counts(F, D)[0] + counts(D, F)[0]
    job = np.array([*(part.ctypes.data for part in parts), slot.ctypes.data, D, F, *_SOURCES[parts[0].dtype]], np.int64)
    run(crew, job.ctypes.data, piece, whole(panels, PIECE) // PIECE, 0)
