"""Experts in bfloat16, as most checkpoints have them: gate rows, up rows, down rows of 2-byte numbers.

Weights are widened to float32 in registers; activations and sums are float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moe_lab.kernels.activation import activation_number
from moe_lab.kernels.expert import Token, rows_kernel
from moe_lab.kernels.formats.format import widened_token_slow
from moe_lab.kernels.formats.rows import row_steps
from moe_lab.kernels.job import Job, job_of

_STEPS = row_steps("bf16", "uint16", 2)
ffn_token, ffn_rows = Token(_STEPS), rows_kernel(_STEPS)


def round_bf16(x: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bits (uint16), to the nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), ((bits >> 16) | 0x40).astype(np.uint16), rounded)


def widen_bf16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) to float32; exact."""
    return np.left_shift(bits, 16, dtype=np.uint32, casting="unsafe").view(np.float32)


class BF16:
    """bfloat16 weights, 6 * D * F bytes a slot."""

    name = "bf16"
    native: str | None = "BF16"
    error = 0.004
    path = "portable"
    grouped = False

    def slot_bytes(self, D: int, F: int) -> int:
        """Bytes of one slot."""
        return 6 * D * F

    def encode(self, gate: np.ndarray, up: np.ndarray, down: np.ndarray, slot: np.ndarray) -> None:
        """Round the matrices to the nearest bfloat16."""
        w = slot[: 6 * gate.size].view(np.uint16).reshape(3, gate.size)
        for row, part in zip(w, (gate, up, down), strict=True):
            row[:] = (part if part.dtype == np.uint16 else round_bf16(part)).reshape(-1)

    def decode(self, slot: np.ndarray, D: int, F: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The matrices, widened into new memory; exact."""
        w = widen_bf16(slot[: 6 * D * F].view(np.uint16)).reshape(3, F * D)
        return w[0].reshape(F, D), w[1].reshape(F, D), w[2].reshape(D, F)

    def ffn_token(self, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray, out: np.ndarray,
                  F: int, activation: str) -> None:
        """See ``Format``."""
        ffn_token(x, arena, slots, gates, out, F, activation)

    def token_again(self, job: Job, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray,
                    out: np.ndarray) -> Callable[[], None]:
        """See ``Format``."""
        return ffn_token.again(job, x, arena, slots, gates, out)

    def ffn_rows(self, x: np.ndarray, slot: np.ndarray, places: np.ndarray, gates: np.ndarray, out: np.ndarray, F: int,
                 activation: str) -> None:
        """See ``Format``."""
        job = job_of(x.shape[1], F, 1, activation_number(activation))
        ffn_rows(job.block, x, slot, places, gates, out)

    def ffn_token_slow(self, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray, F: int,
                       activation: str) -> np.ndarray:
        """See ``Format``."""
        return widened_token_slow(self, x, arena, slots, gates, F, activation)
