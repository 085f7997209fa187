"""How expert kernels are compiled: one decorator for all but the sums, one for the sums.

No blanket fast-math: a NaN or an infinity must come out at the other end. Only dot products may be
summed in another order than written (LLVM needs that to use vectors); the order is fixed when they are
compiled, so a result never depends on threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

kernel: Callable[..., Any] = numba.njit(cache=True, nogil=True, error_model="numpy")
"""Decorator of a kernel: compiled once and kept on disk, runs without the GIL."""

dot: Callable[..., Any] = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
"""Decorator of a dot product: its sum may be reassociated and its products fused, nothing else."""
