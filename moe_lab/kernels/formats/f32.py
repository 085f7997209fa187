"""Experts in float32, the format that changes nothing: gate rows, up rows, down rows.

Knows one slot layout. The order of sums is fixed, so the result has the same bits however it is called.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.activation import activate
from moe_lab.kernels.formats.format import activation_number, hidden
from moe_lab.kernels.jit import jit


@jit(reorder=True, cache=False)
def _dot(w, x):  # type: ignore[no-untyped-def]
    total = np.float32(0)
    for k in range(x.size):
        total += w[k] * x[k]
    return total


@jit(reorder=True, cache=False)
def _dot_pair(v, w, x):  # type: ignore[no-untyped-def]
    first, second = np.float32(0), np.float32(0)
    for k in range(x.size):
        first += v[k] * x[k]
        second += w[k] * x[k]
    return first, second


@jit(cache=False)
def _expert(x, w, gate, out, h, activation):  # type: ignore[no-untyped-def]
    """out (D,) += gate * down @ (act(gate_matrix @ x) * (up @ x)); w (3 * F * D,) float32, h (F,) scratch."""
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
    size = 12 * x.size * h.size
    out[:] = 0
    for k in range(slots.size):
        if slots[k] >= 0:
            _expert(x, arena[slots[k], :size].view(np.float32), gates[k], out, h, activation)


@jit
def ffn_rows(x, slot, out, h, activation):  # type: ignore[no-untyped-def]
    """See ``Format.ffn_rows``."""
    w = slot[: 12 * x.shape[1] * h.size].view(np.float32)
    out[:] = 0
    for row in range(x.shape[0]):
        _expert(x[row], w, np.float32(1), out[row], h, activation)


class F32:
    """float32 weights, 12 * D * F bytes a slot."""

    name = "f32"
    native: str | None = "F32"

    def slot_bytes(self, D: int, F: int) -> int:
        """Bytes of one slot."""
        return 12 * D * F

    def encode(self, gate: np.ndarray, up: np.ndarray, down: np.ndarray, slot: np.ndarray) -> None:
        """Copy the matrices; exact."""
        for part, view in zip((gate, up, down), self.decode(slot, gate.shape[1], gate.shape[0]), strict=True):
            view[:] = part

    def decode(self, slot: np.ndarray, D: int, F: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Views of the slot; nothing is copied."""
        w = slot[: 12 * D * F].view(np.float32).reshape(3, F * D)
        return w[0].reshape(F, D), w[1].reshape(F, D), w[2].reshape(D, F)

    def ffn_token(self, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray, out: np.ndarray,
                  F: int, activation: str) -> None:
        """See ``Format``."""
        ffn_token(x, arena, slots, gates, out, hidden(F), activation_number(activation))

    def ffn_rows(self, x: np.ndarray, slot: np.ndarray, out: np.ndarray, F: int, activation: str) -> None:
        """See ``Format``."""
        ffn_rows(x, slot, out, hidden(F), activation_number(activation))
