"""The files that traces come in, by their suffix: a reader and a writer each.

Knows arrays and text. A reader gives the fields of a :class:`moe_lab.trace.Trace`; whether they fit together is
the trace's own affair. A file is read whole or refused whole, and written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_lab.trace_files import jsonl, npz, parquet, route_csv

if TYPE_CHECKING:
    from moe_lab.trace import Trace

READERS: dict[str, Callable[[Path, int | None], dict[str, Any]]] = {
    ".npz": npz.read,
    ".jsonl": jsonl.read,
    ".csv": route_csv.read,
    ".parquet": parquet.read,
}
"""Suffix: ``(path, experts)`` gives the fields of a ``Trace`` by name, as arrays or nested lists of T tokens.

``experts`` of a layer, where they are known beforehand; an id beyond them is refused at its line where a file has
lines. Each raises a TraceError that says what was expected and where, and an OSError where there is no such file.
"""

WRITERS: dict[str, Callable[[Trace, Path], None]] = {
    ".npz": npz.write,
    ".jsonl": jsonl.write,
    ".csv": route_csv.write,
    ".parquet": parquet.write,
}
"""Suffix: ``(trace, path)`` writes a trace. Each raises a TraceError for what its format cannot hold."""

__all__ = ["READERS", "WRITERS"]
