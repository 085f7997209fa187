"""Recorded ids as the kernels over them take them.

Knows how they lie in memory and which numbers they may be. Knows no trace and no policy.
"""

from __future__ import annotations

import numpy as np

from moe_lab.errors import SettingError
from moe_lab.kernels.jit import jit


def recorded(ids: np.ndarray, E: int) -> np.ndarray:
    """``ids`` (T, K), -1 for none, as int32 in one piece; a copy only where they are otherwise.

    Kernels index by them and count on every expert of a row being another one, so both are seen to here.

    Raises:
        SettingError: no whole numbers, an id that is not one of ``E`` experts, or one that a row holds twice.

    Example:
        >>> recorded(np.array([[0, 3], [2, -1]]), E=4).dtype
        dtype('int32')
    """
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise SettingError(f"ids must be whole numbers (tokens, K), not {ids.dtype} {ids.shape}")
    if ids.size and not (ids.min() >= -1 and ids.max() < E):        # before they become 32 bits
        raise SettingError(f"ids must be from -1 to {E - 1}, not from {ids.min()} to {ids.max()}")
    ids = np.require(ids, np.int32, ["C", "A", "W"])
    row = _twice(ids, E)
    if row >= 0:
        raise SettingError(f"ids of one row must be distinct, not {ids[row].tolist()} (row {row})")
    return ids


@jit
def _twice(ids: np.ndarray, E: int) -> int:
    """The first row of ``ids`` (T, K), from -1 to E - 1, that holds an expert twice; -1 for none."""
    seen = np.full(E, -1, np.int64)
    for t in range(ids.shape[0]):
        for k in range(ids.shape[1]):
            if ids[t, k] >= 0:
                if seen[ids[t, k]] == t:
                    return t
                seen[ids[t, k]] = t
    return -1
