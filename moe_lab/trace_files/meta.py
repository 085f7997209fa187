"""What a trace says of itself, as JSON.

Knows which values JSON can hold, and those of NumPy and paths that have a plain twin. Knows no key.
"""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_lab.errors import TraceError
from moe_lab.units import whole_number


def as_json(meta: Any) -> str:
    """``meta`` in one line of JSON. NumPy's numbers and arrays become plain ones, a path becomes text.

    Raises:
        TraceError: no mapping, or a value that JSON cannot hold: which key has it.

    Example:
        >>> as_json({"model": "m", "layers": np.array([1, 3])})
        '{"model": "m", "layers": [1, 3]}'
    """
    if not isinstance(meta, Mapping):
        raise TraceError(f"meta must be a dict of plain values, not {type(meta).__name__}")
    try:
        return _dumped(dict(meta))
    except (TypeError, ValueError, RecursionError) as error:
        raise TraceError(f"meta{_at_fault(meta)} cannot be written as JSON: {error}; give text, finite numbers, lists "
                         "and dicts") from error


def plain(meta: Any) -> dict[str, Any]:
    """``meta`` as it comes back from a file: what :func:`as_json` writes, read. Raises as it does."""
    return dict(json.loads(as_json(meta)))


def _dumped(value: Any) -> str:
    return json.dumps(value, default=_twin, allow_nan=False)


def _twin(value: Any) -> Any:
    """The plain value that stands for one that JSON does not know."""
    if (number := whole_number(value)) is not None:
        return number
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def _at_fault(meta: Mapping[Any, Any]) -> str:
    """The first key whose value cannot be written, in brackets."""
    for key, value in meta.items():
        try:
            _dumped({key: value})
        except (TypeError, ValueError, RecursionError):
            return f"[{key!r}]"
    return ""
