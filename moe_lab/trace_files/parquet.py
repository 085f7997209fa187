"""``.parquet``: one row per token and layer, for pandas, Polars, DuckDB and others. Needs pyarrow, an extra.

Knows the columns: ``step``, ``layer`` (places from 0), ``phase``, ``experts`` (a list of K ids) and, where there are
any, ``weights`` (a list), ``token`` and ``logits`` (a list of E). The whole trace fits in; experts, meta and the
numbers of rows lie in the file's own metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_lab.errors import TraceError
from moe_lab.spec import MOST_EXPERTS
from moe_lab.trace_files.meta import plain
from moe_lab.trace_files.whole import whole

if TYPE_CHECKING:
    from moe_lab.trace import Trace

_KEY = b"moe_lab_trace"
_LISTS = ("experts", "weights", "logits")
_NUMBERS = ("step", "layer", "phase")


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise TraceError(f"{path}: .parquet needs pyarrow, which is not installed; type: pip install "
                         "'moe-lab[parquet]', or take .npz, which holds the same") from error
    return pa, pq


def read(path: Path, experts: int | None = None) -> dict[str, Any]:
    """The fields of a trace, arrays (T, L, ...). Rows may come in any order, each token with every layer once.

    Raises:
        TraceError: no pyarrow, a damaged file, a column that is missing or of another type, rows missing or twice.
    """
    arrow, parquet = _pyarrow(path)
    try:
        with path.open("rb") as file:
            table = parquet.read_table(file)
    except (arrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise TraceError(f"{path} is not a whole .parquet file: {error}") from error
    if missing := [name for name in (*_NUMBERS, "experts") if name not in table.column_names]:
        raise TraceError(f"{path}: expected the columns {', '.join((*_NUMBERS, 'experts'))}; there is no "
                         f"{', '.join(missing)} among {', '.join(table.column_names) or 'none'}")
    about = _about(table.schema.metadata or {}, path)
    step, layer, phase = (_numbers(table, name, path, arrow) for name in _NUMBERS)
    T, L = int(step.max(initial=-1)) + 1, max(int(layer.max(initial=-1)) + 1, 0 if len(layer) else about.get("L", 0))
    place = step * max(L, 1) + layer
    if len(place) != T * L or not np.array_equal(np.sort(place), np.arange(T * L)):
        raise TraceError(f"{path}: expected {T * L} rows, one for each of {T} tokens and {L} layers, found "
                         f"{len(place)}, {len(np.unique(place))} of them different")
    order = np.argsort(place)
    lists = {name: _lists(table, name, path, arrow) for name in _LISTS if name in table.column_names}
    found: dict[str, Any] = {name: values[order].reshape(T, L, values.shape[1]) for name, values in lists.items()}
    tokens = _numbers(table, "token", path, arrow)[order] if "token" in table.column_names else None
    return {"ids": found.pop("experts"), **found, "phase": _of_steps(phase[order], L, "phase", path),
            "tokens": None if tokens is None else _of_steps(tokens, L, "token", path),
            "experts": about.get("experts"), "meta": about.get("meta", {})}


def _of_steps(values: np.ndarray, L: int, name: str, path: Path) -> np.ndarray:
    """One of ``values`` (T * L,) for each step, (T,): its layers must agree."""
    first = values[:: max(L, 1)]
    apart = np.repeat(first, max(L, 1)) != values
    if apart.any():
        raise TraceError(f"{path}: expected one {name} for each step, and the layers of step "
                         f"{int(np.argmax(apart)) // L} have several")
    return first


def _about(metadata: dict[bytes, bytes], path: Path) -> dict[str, Any]:
    """What a file of ours says of itself."""
    try:
        about = json.loads(metadata.get(_KEY, b"{}"))
    except ValueError as error:
        raise TraceError(f"{path}: its metadata is not JSON: {error}") from error
    return about if isinstance(about, dict) else {}


def _numbers(table: Any, name: str, path: Path, arrow: Any) -> np.ndarray:
    """A column of whole numbers, (rows,) int64."""
    column = table[name]
    if not arrow.types.is_integer(column.type) or column.null_count:
        raise TraceError(f"{path}: expected whole numbers in the column {name!r}, found {column.type} with "
                         f"{column.null_count} missing")
    values: np.ndarray = column.to_numpy()
    outside = values > 2**63 - 1 if name == "token" else (values < 0) | (values > 2**63 - 1)
    if outside.any():
        at = int(np.argmax(outside))
        raise TraceError(f"{path}, row {at}: expected {name} from 0, found {values[at]}")
    return values.astype(np.int64)


def _lists(table: Any, name: str, path: Path, arrow: Any) -> np.ndarray:
    """A column of lists of one length, (rows, length)."""
    column = table[name].combine_chunks()
    kind = column.type
    inside = getattr(kind, "value_type", None)
    wanted = "whole numbers" if name == "experts" else "numbers"
    fits = arrow.types.is_integer if name == "experts" else lambda t: arrow.types.is_integer(
        t) or arrow.types.is_floating(t)
    if inside is None or not fits(inside) or column.null_count or column.flatten().null_count:
        raise TraceError(f"{path}: expected a list of {wanted} in every row of the column {name!r}, found {kind}")
    fixed = arrow.types.is_fixed_size_list(kind)
    if not len(column):
        return np.zeros((0, kind.list_size if fixed else 0), dtype=np.int64)
    lengths = np.full(len(column), kind.list_size) if fixed else np.diff(column.offsets.to_numpy())
    if (lengths != lengths[0]).any():
        at = int(np.argmax(lengths != lengths[0]))
        raise TraceError(f"{path}, row {at}: expected {lengths[0]} numbers in {name!r}, as in the first row, found "
                         f"{lengths[at]}")
    values = column.flatten().to_numpy(zero_copy_only=False)
    if name == "experts" and values.size and not (values.min() >= -1 and values.max() < MOST_EXPERTS):
        raise TraceError(f"{path}: expert ids are whole numbers from 0 to {MOST_EXPERTS - 1}, and -1 for an unused "
                         "place")
    return values.reshape(len(column), int(lengths[0]))


def write(trace: Trace, path: Path) -> None:
    """All of the trace, in T x L rows, compressed by zstd.

    Raises:
        TraceError: no pyarrow.
    """
    arrow, parquet = _pyarrow(path)
    T, L = len(trace), trace.L
    columns: dict[str, Any] = {"step": arrow.array(np.repeat(np.arange(T), L)),
                               "layer": arrow.array(np.tile(np.arange(L, dtype=np.int32), T)),
                               "phase": arrow.array(np.repeat(trace.phase, L))}
    lists = {"experts": trace.ids, "weights": trace.weights, "logits": trace.logits}
    for name, values in lists.items():
        if values is not None:
            columns[name] = arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), values.shape[2])
    if trace.tokens is not None:
        columns["token"] = arrow.array(np.repeat(trace.tokens, L))
    about = {"version": 1, "L": L, "experts": trace.experts, "meta": plain(trace.meta)}
    table = arrow.table(columns).replace_schema_metadata({_KEY: json.dumps(about).encode()})
    with whole(path, "wb") as file:
        parquet.write_table(table, file, compression="zstd")
