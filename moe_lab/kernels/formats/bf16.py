"""Experts in bfloat16, as most checkpoints have them: gate rows, up rows, down rows of 2-byte numbers.

Knows one slot layout. Weights are widened to float32 in registers, activations and sums are float32;
the order of sums is fixed, so the result has the same bits however it is called.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.activation import activate
from moe_lab.kernels.formats.format import activation_number, hidden
from moe_lab.kernels.jit import jit


@jit(cache=False)
def _widen(bits):  # type: ignore[no-untyped-def]
    """A bfloat16, given as uint16, is the upper half of a float32."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@jit(reorder=True, cache=False)
def _dot(w, x):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for k in range(x.size):
        total += _widen(w[k]) * x[k]
    return total


@jit(reorder=True, cache=False)
def _dot_pair(v, w, x):  # type: ignore[no-untyped-def]
    first, second = np.float32(0), np.float32(0)
    for k in range(x.size):
        first += _widen(v[k]) * x[k]
        second += _widen(w[k]) * x[k]
    return first, second


@jit(cache=False)
def _expert(x, w, gate, out, h, activation):  # type: ignore[no-untyped-def]
    """out (D,) += gate * down @ (act(gate_matrix @ x) * (up @ x)); w (3 * F * D,) uint16, h (F,) scratch."""
    D, F = x.size, h.size
    n = F * D
    for r in range(F):
        a, b = _dot_pair(w[r * D : (r + 1) * D], w[n + r * D : n + (r + 1) * D], x)
        h[r] = activate(a, activation) * b
    for r in range(D):
        out[r] += gate * _dot(w[2 * n + r * F : 2 * n + (r + 1) * F], h)


@jit
def ffn_token(x, arena, slots, gates, out, h, activation):  # type: ignore[no-untyped-def]
    """See ``Format.ffn_token``; h (F,) float32 is scratch, ``activation`` a number."""
    size = 6 * x.size * h.size
    out[:] = 0
    for k in range(slots.size):
        if slots[k] >= 0:
            _expert(x, arena[slots[k], :size].view(np.uint16), gates[k], out, h, activation)


@jit
def ffn_rows(x, slot, out, h, activation):  # type: ignore[no-untyped-def]
    """See ``Format.ffn_rows``."""
    w = slot[: 6 * x.shape[1] * h.size].view(np.uint16)
    out[:] = 0
    for row in range(x.shape[0]):
        _expert(x[row], w, np.float32(1), out[row], h, activation)


def round_bf16(x: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bits (uint16), to the nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), ((bits >> 16) | 0x40).astype(np.uint16), rounded)


def widen_bf16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) to float32; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


class BF16:
    """bfloat16 weights, 6 * D * F bytes a slot."""

    name = "bf16"
    native: str | None = "BF16"

    def slot_bytes(self, D: int, F: int) -> int:
        """Bytes of one slot."""
        return 6 * D * F

    def encode(self, gate: np.ndarray, up: np.ndarray, down: np.ndarray, slot: np.ndarray) -> None:
        """Round the matrices to the nearest bfloat16."""
        w = slot[: 6 * gate.size].view(np.uint16).reshape(3, gate.size)
        for row, part in zip(w, (gate, up, down), strict=True):
            row[:] = round_bf16(part).reshape(-1)

    def decode(self, slot: np.ndarray, D: int, F: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The matrices, widened into new memory; exact."""
        w = widen_bf16(slot[: 6 * D * F].view(np.uint16)).reshape(3, F * D)
        return w[0].reshape(F, D), w[1].reshape(F, D), w[2].reshape(D, F)

    def ffn_token(self, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray, out: np.ndarray,
                  F: int, activation: str) -> None:
        """See ``Format``."""
        ffn_token(x, arena, slots, gates, out, hidden(F), activation_number(activation))

    def ffn_rows(self, x: np.ndarray, slot: np.ndarray, out: np.ndarray, F: int, activation: str) -> None:
        """See ``Format``."""
        ffn_rows(x, slot, out, hidden(F), activation_number(activation))
