"""Arrays as a trace takes them: looked at before any cast could change a value.

Knows which numbers fit a type, and how to say where one does not. Knows no rule of a trace beyond that.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_lab.errors import TraceError

AXES = ("token", "layer", "place")


def whole_numbers(values: Any, what: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """``values`` as an array of whole numbers, of their own type.

    Raises:
        TraceError: no array, another ``shape``, or fractions, bools, texts or objects in it.

    Example:
        >>> whole_numbers([[3, 1]], "ids").tolist()
        [[3, 1]]
        >>> whole_numbers([[3, 1.5]], "ids")
        Traceback (most recent call last):
        moe_lab.errors.TraceError: ids must be whole numbers, not float64: 1.5 at token 0, layer 1
    """
    array = _array(values, what, shape)
    if not array.size:
        return array.astype(np.int64)
    if array.dtype.kind in "iu":
        return array
    with np.errstate(invalid="ignore"):
        broken = array % 1 != 0 if array.dtype.kind == "f" else np.ones(array.shape, np.bool_)
    where = f": {_first(array, broken)}" if broken.any() else f"; type {what}.astype(np.int64)"
    raise TraceError(f"{what} must be whole numbers, not {array.dtype}{where}")


def within(array: np.ndarray, low: int, high: int, dtype: Any, what: str) -> np.ndarray:
    """A copy of whole numbers as ``dtype``, in C order.

    Raises:
        TraceError: one that is not from ``low`` to ``high``.
    """
    outside = (array < low) | (array > high)
    if outside.any():
        raise TraceError(f"{what} go from {low} to {high}, not {_first(array, outside)}")
    return np.array(array, dtype=dtype, order="C")


def real_numbers(values: Any, what: str, shape: tuple[int, ...], dtype: Any, low: float,
                 masks: bool = False) -> np.ndarray:
    """A copy of numbers as ``dtype``, in C order, rounded; ``masks`` allows -inf.

    Raises:
        TraceError: no numbers, another shape, NaN, infinity, or one that is under ``low`` or beyond ``dtype``.
    """
    array = _array(values, what, shape)
    if array.size and array.dtype.kind not in "iuf":
        raise TraceError(f"{what} must be numbers, not {array.dtype}")
    high = float(np.finfo(dtype).max)
    low = max(low, -high)
    with np.errstate(all="ignore"):             # NaN compares as it should, and what is tiny becomes 0
        if array.size and not (array.min() >= low and array.max() <= high):
            broken = ~((array >= low) & (array <= high) | (array == -np.inf) & masks)
            if broken.any():
                raise TraceError(f"{what} must be finite numbers from {low:g} to {high:g}, not "
                                 f"{_first(array, broken)}")
        return np.array(array, dtype=dtype, order="C")


def _array(values: Any, what: str, shape: tuple[int, ...] | None) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TraceError(f"{what} must be an array of numbers: {error}") from error
    if shape is None and not array.ndim:
        raise TraceError(f"{what} must be an array of numbers, not {values!r:.60}")
    if shape is not None and array.shape != shape:
        raise TraceError(f"{what} must be {shape} to fit the ids, not {array.shape}")
    if array.dtype.kind in "iuf" and _bools(values):
        raise TraceError(f"{what} must be numbers, and there are bools among them")      # NumPy would make them 0 and 1
    return array


def _bools(values: Any) -> bool:
    """Whether nested lists hold a bool."""
    if isinstance(values, (list, tuple)):
        return any(map(_bools, values))
    return isinstance(values, (bool, np.bool_))


def _first(array: np.ndarray, broken: np.ndarray) -> str:
    """The first of the broken ones, and where it stands."""
    at = tuple(int(i[0]) for i in np.nonzero(broken))
    value = array[at].item() if array.dtype.kind in "biuf" else array[at]
    return f"{value!r:.60} at " + ", ".join(f"{axis} {i}" for axis, i in zip(AXES, at, strict=False))
