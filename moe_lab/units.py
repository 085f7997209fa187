"""Numbers, sizes, rates and times as people give them, and as they are shown.

Knows units, and which things are numbers. Numbers inside the code are bytes, bytes a second and seconds.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping

from moe_lab.errors import SettingError

_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµ/%]*)\s*", re.IGNORECASE)


def whole_number(value: object) -> int | None:
    """``value`` as an int where it is a whole number of any kind, NumPy's included; None for all else.

    A bool, a text and a float, even 3.0, are no whole numbers.

    >>> import numpy as np
    >>> whole_number(16), whole_number(np.uint8(16)), whole_number(True), whole_number(16.0), whole_number("16")
    (16, 16, None, None, None)
    """
    return int(value) if not isinstance(value, bool) and isinstance(value, numbers.Integral) else None


def real_number(value: object) -> float | None:
    """``value`` as a finite float where it is a number of any kind, NumPy's included; None for all else.

    A bool, a text, a NaN and an infinity are none, nor is a whole number beyond the largest float.

    >>> import numpy as np
    >>> real_number(np.float32(0.5)), real_number(2), real_number(True), real_number(np.nan), real_number("0.5")
    (0.5, 2.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def seed_number(seed: object) -> int:
    """A seed as an int.

    Raises:
        SettingError: no whole number from 0 below 2^53, which policies see exactly.

    >>> seed_number(7)
    7
    """
    number = whole_number(seed)
    if number is None or not 0 <= number < 2**53:
        raise SettingError(f"seed={seed!r} must be a whole number from 0, below 2^53")
    return number


def _parse(text: object, units: Mapping[str, float], what: str, example: str) -> float:
    if isinstance(text, str):
        match = _NUMBER.fullmatch(text)
        unit = match.group(2).lower() if match else None
        if match is None or (unit and unit not in units):
            raise SettingError(f"{what} {text!r} is not understood; type one like {example!r} "
                               f"(units: {', '.join(units)})")
        number = real_number(float(match.group(1)) * (units[unit] if unit else 1.0))
    elif isinstance(text, bool) or not isinstance(text, numbers.Real):
        raise SettingError(f"{what} must be a number or a text like {example!r}, not {text!r}")
    else:
        number = real_number(text)
    if number is None or number < 0:
        raise SettingError(f"{what} must be finite and not negative, not {text!r}; type one like {example!r}")
    return number


def parse_bytes(text: str | float) -> int:
    """Bytes from a number or a text.

    >>> parse_bytes("6 GiB"), parse_bytes("200 MB"), parse_bytes(512)
    (6442450944, 200000000, 512)
    """
    return round(_parse(text, _BYTES, "size", "6 GiB"))


def parse_rate(text: str | float) -> float:
    """Bytes a second from a number or a text.

    >>> parse_rate("200 MB/s")
    200000000.0
    """
    return _parse(text, {f"{unit}/s": factor for unit, factor in _BYTES.items()}, "rate", "200 MB/s")


def parse_seconds(text: str | float) -> float:
    """Seconds from a number or a text.

    >>> parse_seconds("0.1 ms")
    0.0001
    """
    return _parse(text, _SECONDS, "time", "0.1 ms")


def format_bytes(size: float) -> str:
    """A size with three figures.

    >>> format_bytes(6442450944), format_bytes(98304), format_bytes(12)
    ('6.00 GiB', '96.0 KiB', '12 B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            break
        size /= 1024
    else:
        unit = "TiB"
    if unit == "B":
        return f"{size:.0f} B"
    return f"{size:.{2 if abs(size) < 10 else 1 if abs(size) < 100 else 0}f} {unit}"


def format_rate(rate: float) -> str:
    """A rate in decimal units, as disks are sold.

    >>> format_rate(200e6), format_rate(3.5e9)
    ('200 MB/s', '3.5 GB/s')
    """
    for unit in ("B/s", "kB/s", "MB/s", "GB/s"):
        if rate < 1000 or unit == "GB/s":
            return f"{rate:.3g} {unit}"
        rate /= 1000
    raise AssertionError


def format_seconds(seconds: float) -> str:
    """A time with three figures.

    >>> format_seconds(0.0001), format_seconds(2.5)
    ('0.1 ms', '2.5 s')
    """
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-5 else f"{seconds * 1e6:.3g} µs"
