"""Single matrices in quantised panels: what attention, shared experts and the head are made of beside the experts.

Knows how such a matrix is made, and its products with one vector or with many, by the same blocks and instructions as
the experts (``panels``). Vectors are quantised as they come, in groups of 32. A matrix has scratch of its own for one
vector, so that decoding allocates nothing; it belongs to one caller at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from moe_lab.kernels.formats import q4, q8
from moe_lab.kernels.formats.blocks import counts, out_of_panels, quantise_vector
from moe_lab.kernels.formats.encode import encode_matrix, matrix_encoder
from moe_lab.kernels.formats.quantised import Code, values_of
from moe_lab.kernels.instructions import NEEDS, chosen
from moe_lab.kernels.jit import copied, jit
from moe_lab.kernels.job import GROUP, PANEL
from moe_lab.kernels.panels import BLOCK, products, row_products

CODES: dict[str, Code] = {"q8": q8.CODE, "q4": q4.CODE}
"""What a matrix can be quantised to."""


class _Matrix(NamedTuple):
    """A matrix (R, C) in blocks, and scratch for one vector."""

    blocks: np.ndarray
    """(panels, groups, bytes) uint8."""
    shape: np.ndarray
    """(2,) int64: R, C."""
    bytes: np.ndarray
    """(groups * 32,) int8: the vector."""
    scales: np.ndarray
    """(groups,) float32."""
    sums: np.ndarray
    """(groups,) int32."""
    spare: np.ndarray
    """(32,) float32: its last group, filled up with zeros."""
    y: np.ndarray
    """(panels * 16,) float32: its product."""


def _type(format: str, path: str) -> type[Any]:
    """A type of its own for each format and path of instructions, by which compiled code tells them apart."""
    own = {"__module__": __name__, "format": format, "path": path, "bits": CODES[format].bits}
    return type(f"Matrix_{format}_{path}", (_Matrix,), own)


TYPES: dict[tuple[str, str], type[Any]] = {(format, path): _type(format, path) for format in CODES for path in NEEDS}
globals().update({kind.__name__: kind for kind in TYPES.values()})     # found by name when compiled code is kept

Matrix = _Matrix
"""A quantised matrix, whatever its format."""


def quantised_matrix(matrix: np.ndarray, format: str, path: str | None = None) -> Matrix:
    """``matrix`` (R, C), float32 or bfloat16 bits (uint16), in ``format`` ("q8" or "q4").

    >>> m = quantised_matrix(np.eye(3, 40, dtype=np.float32), "q8")
    >>> m.blocks.shape, matrix_values(m)[1, :3].round(2).tolist()
    ((1, 2, 544), [0.0, 1.0, 0.0])
    """
    code = CODES[format]
    blocks = encode_matrix(_encoder(format), matrix, code.bits)
    panels, groups, _ = blocks.shape
    f = np.float32
    found: Matrix = TYPES[format, path or chosen()](
        blocks, np.array(matrix.shape, np.int64), np.zeros(groups * GROUP, np.int8), np.zeros(groups, f),
        np.zeros(groups, np.int32), np.zeros(GROUP, f), np.zeros(panels * PANEL, f))
    return found


def matrix_bytes(rows: int, columns: int, format: str) -> int:
    """Bytes of a matrix in ``format``."""
    panels, groups = counts(rows, columns)
    return panels * groups * BLOCK[CODES[format].bits]


def matrix_values(m: Matrix) -> np.ndarray:
    """The numbers that a matrix stands for, (R, C) float32."""
    kind: Any = type(m)
    R, C = (int(n) for n in m.shape)
    return out_of_panels(values_of(CODES[kind.format], m.blocks), R, C)


@functools.cache
def _encoder(format: str) -> Callable[..., Any]:
    code = CODES[format]
    return matrix_encoder(code.bits, code.write_group)


@functools.cache
def vector_product(bits: int, path: str) -> Callable[..., Any]:
    """The kernel ``(matrix, x (C,), y (R,))``: y = matrix times x, both float32."""
    panel, above = products(path, bits)
    size = BLOCK[bits]

    @jit(helper=True)
    def product(m, x, y):  # type: ignore[no-untyped-def]
        groups, at = m.blocks.shape[1], m.blocks.ctypes.data
        bytes, scales, sums = m.bytes.ctypes.data, m.scales.ctypes.data, m.sums.ctypes.data
        quantise_vector(x.ctypes.data, x.size, bytes, scales, sums, m.spare.ctypes.data, above)
        for p in range(m.blocks.shape[0]):
            panel(at + p * groups * size, groups, bytes, scales, sums, m.y.ctypes.data + 64 * p)
        copied(m.y[: y.size], y)

    return product


@functools.cache
def rows_product(bits: int, path: str) -> Callable[..., Any]:
    """The kernel ``(blocks, x (T, C), y (T, panels * 16))`` for many vectors: each panel is read once."""
    (one, two), above, size = row_products(path, bits), products(path, bits).above, BLOCK[bits]

    @jit(name=f"rows of a matrix q{bits} {path}")
    def rows(blocks, x, y):  # type: ignore[no-untyped-def]
        (panels, groups, _), (T, C) = blocks.shape, x.shape
        bytes, spare = np.empty((T, groups * GROUP), np.int8), np.empty(GROUP, np.float32)
        scales, sums = np.empty((T, groups), np.float32), np.empty((T, groups), np.int32)
        for t in range(T):
            quantise_vector(x[t].ctypes.data, C, bytes[t].ctypes.data, scales[t].ctypes.data, sums[t].ctypes.data,
                            spare.ctypes.data, above)
        for p in range(0, panels - 1, 2):
            out = y.ctypes.data + 64 * p
            two(blocks.ctypes.data + p * groups * size, groups, T, bytes.ctypes.data, scales.ctypes.data,
                sums.ctypes.data, out, out + 64, 64 * panels)
        if panels % 2:
            one(blocks.ctypes.data + (panels - 1) * groups * size, groups, T, bytes.ctypes.data, scales.ctypes.data,
                sums.ctypes.data, y.ctypes.data + 64 * (panels - 1), 64 * panels)

    return rows


def times_rows(m: Matrix, x: np.ndarray) -> np.ndarray:
    """y (T, R) float32 = the matrix times each row of ``x`` (T, C) float32; the bits of the product with one vector."""
    kind: Any = type(m)
    y = np.empty((x.shape[0], m.y.size), np.float32)
    rows_product(kind.bits, kind.path)(m.blocks, np.require(x, np.float32, ["C", "A", "W"]), y)
    return y[:, : int(m.shape[0])]
