"""Recorded ids as the kernels over them take them.

Knows how they lie in memory and which numbers they may be. Knows no trace and no policy.
"""

from __future__ import annotations

import numpy as np

from moe_lab.errors import SettingError


def recorded(ids: np.ndarray, E: int) -> np.ndarray:
    """``ids`` (T, K), -1 for none, as int32 in one piece; a copy only where they are otherwise.

    Raises:
        SettingError: an id that is not one of ``E`` experts.

    Example:
        >>> recorded(np.array([[0, 3], [2, -1]]), E=4).dtype
        dtype('int32')
    """
    if ids.size and not (ids.min() >= -1 and ids.max() < E):        # before they become 32 bits
        raise SettingError(f"ids must be from -1 to {E - 1}, not from {ids.min()} to {ids.max()}")
    return np.require(ids, np.int32, ["C", "A", "W"])
