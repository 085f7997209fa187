"""JSON that every reader understands alike: UTF-8, no NaN, and no name twice in one table where it counts."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


class Repeated(dict[str, Any]):
    """A table with a name that stands in it twice: readers differ in which of the two they take."""

    name: str


def parse(text: bytes) -> Any:
    """``text`` as Python values; a table with a repeated name comes as ``Repeated``. ``ValueError`` for no JSON.

    >>> parse(b'{"a": [1, {}]}'), parse(b'{"a": 1, "a": 2}').name
    ({'a': [1, {}]}, 'a')
    """
    return json.loads(text.decode("utf-8"), object_pairs_hook=_table, parse_constant=_no_number)


def once(table: Any) -> dict[str, Any]:
    """``table`` itself; ``ValueError`` where it is none, or names something twice.

    >>> once(parse(b'{"a": 1, "a": 2}'))
    Traceback (most recent call last):
        ...
    ValueError: it names 'a' twice
    """
    if not isinstance(table, dict):
        raise ValueError("it is not a table")
    if isinstance(table, Repeated):
        raise ValueError(f"it names {table.name!r} twice")
    return table


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) == len(pairs):
        return table
    repeated = Repeated(table)
    repeated.name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return repeated


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")
