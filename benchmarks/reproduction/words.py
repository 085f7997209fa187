"""How figures are written: shares in percent, changes with a sign, tables in Markdown.

Knows text only.
"""

from __future__ import annotations

from typing import Any

from moe_lab.pocket.page import table

__all__ = ["by_world", "change", "folded", "interval", "percent", "table"]


def percent(share: float | None, digits: int = 1) -> str:
    """
    >>> percent(0.1234), percent(None)
    ('12.3%', 'n/a')
    """
    return "n/a" if share is None else f"{share:.{digits}%}"


def change(share: float | None, digits: int = 2) -> str:
    """
    >>> change(0.0098)
    '+0.98%'
    """
    return "n/a" if share is None else f"{share:+.{digits}%}"


def interval(row: dict[str, Any]) -> str:
    """The increase of perplexity of a row, with its 95 % interval.

    >>> interval({"increase": 0.01, "increase_low": 0.008, "increase_high": 0.012})
    '+1.00% (+0.80 to +1.20)'
    """
    low, high = row["increase_low"], row["increase_high"]
    ends = "" if low is None or low == high else f" ({100 * low:+.2f} to {100 * high:+.2f})"
    return change(row["increase"]) + ends


def by_world(values: dict[str, str]) -> str:
    """
    >>> by_world({"python": "1", "prose": "2"})
    'python 1, prose 2'
    """
    return ", ".join(f"{world} {value}" for world, value in values.items())


def folded(title: str, body: str) -> str:
    """A part that a reader opens."""
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"
