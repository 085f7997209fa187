"""Experts in float32, the format that changes nothing: gate rows, up rows, down rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moe_lab.kernels.activation import activation_number
from moe_lab.kernels.expert import Token, rows_kernel
from moe_lab.kernels.formats.bf16 import widen_bf16
from moe_lab.kernels.formats.format import widened_token_slow
from moe_lab.kernels.formats.rows import row_steps
from moe_lab.kernels.job import Job, job_of

_STEPS = row_steps("f32", "float32", 4)
ffn_token, ffn_rows = Token(_STEPS), rows_kernel(_STEPS)


class F32:
    """float32 weights, 12 * D * F bytes a slot."""

    name = "f32"
    native: str | None = "F32"
    error = 1e-5
    path = "portable"
    grouped = False

    def slot_bytes(self, D: int, F: int) -> int:
        """Bytes of one slot."""
        return 12 * D * F

    def encode(self, gate: np.ndarray, up: np.ndarray, down: np.ndarray, slot: np.ndarray) -> None:
        """Widen the matrices; exact."""
        gate, up, down = (widen_bf16(part) if part.dtype == np.uint16 else part for part in (gate, up, down))
        for part, view in zip((gate, up, down), self.decode(slot, gate.shape[1], gate.shape[0]), strict=True):
            view[:] = part

    def decode(self, slot: np.ndarray, D: int, F: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Views of the slot; nothing is copied."""
        w = slot[: 12 * D * F].view(np.float32).reshape(3, F * D)
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
