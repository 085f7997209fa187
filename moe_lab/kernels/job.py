"""What a call of the expert kernels needs, written down once: a block of integers and the memory behind it.

Knows sizes and addresses, and no weight format. A call costs one conversion per argument; what stays the same
from call to call is one argument. A ``Job`` belongs to one caller at a time.
"""

from __future__ import annotations

import threading

import numpy as np

from moe_lab.kernels.jit import jit

FIELDS = ("width", "hidden", "top_k", "activation", "arena", "stride", "slots", "x", "gates", "out", "places", "count",
          "phase", "x_bytes", "x_scales", "x_sums", "h", "u", "h_bytes", "h_scales", "h_sums", "part")
"""Sizes, then what a call is given (addresses, and the bytes from one slot to the next), then addresses of scratch."""
(WIDTH, HIDDEN, TOP_K, ACTIVATION, ARENA, STRIDE, SLOTS, X, GATES, OUT, PLACES, COUNT, PHASE,
 X_BYTES, X_SCALES, X_SUMS, H, U, H_BYTES, H_SCALES, H_SUMS, PART) = range(len(FIELDS))

UP_ROWS, DOWN_ROWS = 64, 128
"""Rows of the hidden layer, and of the output, that are one piece of a shared job: a whole number of groups."""

GROUP = 32
"""Numbers that share a scale; widths are filled up to whole groups."""
PANEL = 16
"""Rows that lie interleaved; their number is filled up to whole panels."""


def whole(count: int, unit: int) -> int:
    """``count`` rounded up to whole units."""
    return (count + unit - 1) // unit * unit


filled = jit(helper=True)(whole)
"""``whole`` for kernels."""


class Job:
    """``block`` (int64) and scratch for at most K experts of widths D and F, for one token or for ``rows``.

    Scratch is zero where no kernel writes, so what fills up a group stays zero.
    """

    def __init__(self, D: int, F: int, K: int, activation: int, rows: int = 1) -> None:
        wide, deep = (whole(size, GROUP) for size in (D, F))
        self.block = np.zeros(len(FIELDS), dtype=np.int64)
        self.block[:4] = D, F, K, activation
        self._scratch: dict[int, np.ndarray] = {
            X_BYTES: np.zeros((rows, wide), np.int8), X_SCALES: np.zeros((rows, wide // GROUP), np.float32),
            X_SUMS: np.zeros((rows, wide // GROUP), np.int32), H: np.zeros((K, deep), np.float32),
            U: np.zeros((K, deep), np.float32), H_BYTES: np.zeros((K, deep), np.int8),
            H_SCALES: np.zeros((K, deep // GROUP), np.float32), H_SUMS: np.zeros((K, deep // GROUP), np.int32),
            PART: np.zeros((rows, wide), np.float32),
        }
        for field, memory in self._scratch.items():
            self.block[field] = memory.ctypes.data


_jobs = threading.local()


def job_of(D: int, F: int, K: int, activation: int, rows: int = 1) -> Job:
    """This thread's job for experts of these sizes."""
    key = D, F, K, activation, rows
    try:
        found: dict[tuple[int, ...], Job] = _jobs.found
    except AttributeError:
        found = _jobs.found = {}
    if key not in found:
        found[key] = Job(*key)
    return found[key]
