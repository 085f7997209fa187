"""The format of quantised experts, whatever the bits: blocks in a slot, activations in bytes, NumPy twins.

Knows the seam (``Format``), the path of instructions that its kernels take, and no meaning of a number: that is a
``Code``, of which ``q8`` and ``q4`` have one each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from moe_lab.kernels.activation import TWINS, activation_number
from moe_lab.kernels.crew import SMALL, address_of, shared
from moe_lab.kernels.expert import Token
from moe_lab.kernels.formats.blocks import (
    ROWS,
    block_steps,
    matrices,
    out_of_panels,
    rows_kernel,
    rows_piece_kernel,
    scales_of,
    slot_bytes,
)
from moe_lab.kernels.formats.encode import encode_expert, expert_encoder
from moe_lab.kernels.groups import quantise_slow
from moe_lab.kernels.instructions import chosen
from moe_lab.kernels.job import Job, job_of
from moe_lab.kernels.pointers import SIGNATURES

SHARED_WORK = 4 * SMALL
"""Tokens times bytes under which a product of many is not shared."""


class Code(NamedTuple):
    """What a number of a quantised format means."""

    name: str
    bits: int
    error: float
    """Bound of the relative RMS error of an expert's output, on normal weights and activations."""
    write_group: Callable[..., Any]
    """Kernel: writes a group, see ``encode``."""
    quantise: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    """The twin: numbers (panels, 16, groups, 32) int8 and scales (panels, groups, 16) float16 of a matrix."""
    numbers_of: Callable[[np.ndarray], np.ndarray]
    """Numbers (panels, 16, groups, 32) int8 in blocks (panels, groups, bytes)."""


def values_of(code: Code, blocks: np.ndarray) -> np.ndarray:
    """What blocks (panels, groups, bytes) stand for, (panels, 16, groups, 32) float32."""
    scales = scales_of(blocks).astype(np.float32).transpose(0, 2, 1)
    with np.errstate(invalid="ignore"):
        return code.numbers_of(blocks) * scales[..., None]


class Quantised:
    """A weight format of blocks. ``path`` forces a path of instructions, which this processor must have.

    >>> from moe_lab.kernels.formats import FORMATS
    >>> FORMATS["q4"].slot_bytes(2048, 1024), FORMATS["q8"].slot_bytes(2048, 1024)
    (3538944, 6684672)
    """

    native: str | None = None
    grouped = True

    def __init__(self, code: Code, path: str | None = None) -> None:
        self.code, self.name, self.error = code, code.name, code.error
        self._path = path

    @functools.cached_property
    def path(self) -> str:
        """The path of ``instructions`` that its kernels take."""
        return self._path or chosen()

    @functools.cached_property
    def _encode(self) -> int:
        return _encode_piece(self.code)

    @functools.cached_property
    def _token(self) -> Token:
        return _token(self.code.bits, self.path)

    @functools.cached_property
    def _rows(self) -> int:
        return _rows_piece(self.code.bits, self.path)

    def slot_bytes(self, D: int, F: int) -> int:
        """Bytes of one slot; widths are filled up to groups of 32 and panels of 16."""
        return slot_bytes(self.code.bits, D, F)

    def encode(self, gate: np.ndarray, up: np.ndarray, down: np.ndarray, slot: np.ndarray) -> None:
        """See ``Format``."""
        encode_expert(self._encode, shared().address if slot.size >= SMALL else 0, gate, up, down, slot)

    def decode(self, slot: np.ndarray, D: int, F: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See ``Format``."""
        gate, up, down = (values_of(self.code, blocks) for blocks in matrices(self.code.bits, slot, D, F))
        return out_of_panels(gate, F, D), out_of_panels(up, F, D), out_of_panels(down, D, F)

    def ffn_token(self, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray, out: np.ndarray,
                  F: int, activation: str) -> None:
        """See ``Format``."""
        self._token(x, arena, slots, gates, out, F, activation)

    def token_again(self, job: Job, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray,
                    out: np.ndarray) -> Callable[[], None]:
        """See ``Format``."""
        return self._token.again(job, x, arena, slots, gates, out)

    def ffn_rows(self, x: np.ndarray, slot: np.ndarray, places: np.ndarray, gates: np.ndarray, out: np.ndarray, F: int,
                 activation: str) -> None:
        """See ``Format``."""
        job = job_of(x.shape[1], F, ROWS, activation_number(activation), ROWS)
        crew = shared().address if places.size * slot.size >= SHARED_WORK else 0
        rows_kernel(crew, self._rows, job.block, x, slot, places, gates, out)

    def ffn_token_slow(self, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray, F: int,
                       activation: str) -> np.ndarray:
        """The twin of ``ffn_token`` in NumPy, its activations quantised as the kernel's are; returns out (D,)."""
        out = np.zeros(x.size)
        for slot, weight in zip(slots, gates, strict=True):
            if slot >= 0:
                gate, up, down = matrices(self.code.bits, arena[slot], x.size, F)
                v = quantise_slow(x)
                h = TWINS[activation](self._product_slow(gate, v).astype(np.float64)) * self._product_slow(up, v)
                out += weight * self._product_slow(down, quantise_slow(h[:F].astype(np.float32)))[: x.size]
        return out

    def _product_slow(self, blocks: np.ndarray, x: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Rows of a matrix in blocks times a quantised vector: groups, each exact, added in float32 in order."""
        (numbers, scales), total = x, np.zeros(blocks.shape[0] * 16, np.float32)
        exact = (self.code.numbers_of(blocks).astype(np.int64) * numbers).sum(-1)
        with np.errstate(invalid="ignore"):
            for g, wide in enumerate(scales_of(blocks).astype(np.float32).transpose(1, 0, 2)):
                factor = (wide * scales[g]).reshape(-1).astype(np.float64)
                total = (exact[..., g].reshape(-1) * factor + total).astype(np.float32)
        return total


@functools.cache
def _encode_piece(code: Code) -> int:
    """The address of what quantises a piece of an expert."""
    return address_of(expert_encoder(code.bits, code.write_group), SIGNATURES["work"])


@functools.cache
def _token(bits: int, path: str) -> Token:
    return Token(block_steps(bits, path))


@functools.cache
def _rows_piece(bits: int, path: str) -> int:
    """The address of what computes a piece of many tokens."""
    return address_of(rows_piece_kernel(bits, path), SIGNATURES["work"])
