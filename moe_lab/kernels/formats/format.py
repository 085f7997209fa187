"""The seam between weights and everything else: what a format must know.

A format says how the three matrices of an expert lie in a slot (bytes), how they get in and out, and how
a token is multiplied with them there. Nothing outside a format looks into a slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from moe_lab.kernels.activation import TWINS
from moe_lab.kernels.job import Job


class Format(Protocol):
    """Weights of an expert as they lie in a slot: gate (F, D), up (F, D), down (D, F).

    >>> from moe_lab.kernels.formats import FORMATS
    >>> bf16, arena = FORMATS["bf16"], np.zeros((3, FORMATS["bf16"].slot_bytes(2, 1)), np.uint8)
    >>> bf16.encode(np.array([[2, 0]], "f4"), np.array([[0, 1]], "f4"), np.array([[1], [3]], "f4"), arena[1])
    >>> out = np.empty(2, np.float32)
    >>> bf16.ffn_token(np.ones(2, "f4"), arena, np.array([1], "i4"), np.array([0.5], "f4"), out, 1, "relu")
    >>> out
    array([1., 3.], dtype=float32)
    """

    name: str
    """As typed: ``weights="bf16"``."""
    native: str | None
    """The safetensors type whose bytes a slot takes as they are, part after part; None if it takes none."""
    error: float
    """Bound of the relative RMS error of an expert's output against float32 weights, on normal weights and inputs."""

    grouped: bool
    """Whether ``ffn_rows`` reads the weights once for many rows; else a matrix product over ``decode`` is faster."""

    @property
    def path(self) -> str:
        """The instructions that its kernels take, as ``instructions`` calls them; ``portable``: plain loops."""

    def slot_bytes(self, D: int, F: int) -> int:
        """Bytes of one slot."""

    def encode(self, gate: np.ndarray, up: np.ndarray, down: np.ndarray, slot: np.ndarray) -> None:
        """Write matrices into ``slot`` (at least slot_bytes,) uint8: all three float32, float16, or bfloat16 bits
        (uint16)."""

    def decode(self, slot: np.ndarray, D: int, F: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The matrices of a slot as float32; views of it where that is possible."""

    def ffn_token(self, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray, out: np.ndarray,
                  F: int, activation: str) -> None:
        """``out`` = sum over k of gates[k] * expert in slot slots[k] of ``x``, in this order, in one kernel call.

        x (D,) float32 · arena (S, at least slot_bytes) uint8 · slots (K,) int32, -1 is passed over ·
        gates (K,) float32 · out (D,) float32, overwritten. All arrays C-contiguous.
        """

    def token_again(self, job: Job, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray,
                    out: np.ndarray) -> Callable[[], None]:
        """``ffn_token`` of these arrays, again and again: a call of what is returned takes what they hold by then.

        ``job`` has room for slots.size experts; it belongs to one caller at a time.
        """

    def ffn_rows(self, x: np.ndarray, slot: np.ndarray, places: np.ndarray, gates: np.ndarray, out: np.ndarray, F: int,
                 activation: str) -> None:
        """``out``[p] = gates[p] * expert in ``slot`` of ``x``[p // K], for every p of ``places``; the bits of
        ``ffn_token``. Other rows of ``out`` stay as they are.

        x (T, D) float32 · slot (at least slot_bytes,) uint8 · places (N,) int64, below T * K · gates (T * K,) float32 ·
        out (T * K, D) float32. All arrays C-contiguous.
        """

    def ffn_token_slow(self, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray, F: int,
                       activation: str) -> np.ndarray:
        """The twin of ``ffn_token`` in NumPy; returns out (D,) float64."""


def widened_token_slow(format: Format, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray, F: int,
                   activation: str) -> np.ndarray:
    """``Format.ffn_token_slow`` of formats that multiply by what they decode to."""
    out = np.zeros(x.size)
    for slot, weight in zip(slots, gates, strict=True):
        if slot >= 0:
            gate, up, down = (part.astype(np.float64) for part in format.decode(arena[slot], x.size, F))
            out += weight * (down @ (TWINS[activation](gate @ x) * (up @ x)))
    return out
