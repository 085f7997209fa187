"""``.jsonl``: one JSON object a token, to be read by people and by other programs.

Knows the keys: ``layers`` (a list of expert ids for each layer) is all that must be there; ``weights``, ``phase`` and
``token`` may be. What we write says on its first line how many tokens follow. Router logits do not fit here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_lab.errors import TraceError
from moe_lab.spec import MOST_EXPERTS
from moe_lab.trace_files.meta import plain
from moe_lab.trace_files.phases import DECODE, PREFILL
from moe_lab.trace_files.strange import door, lines
from moe_lab.trace_files.whole import whole

if TYPE_CHECKING:
    from moe_lab.trace import Trace


def read(path: Path, experts: int | None = None) -> dict[str, Any]:
    """The fields of a trace, (T, L, K) lists filled up with -1 (ids) and 0 (weights).

    Raises:
        TraceError: a line that is no such object, an id out of range or twice, fewer tokens than the first line says.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (path := Path(folder) / "a.jsonl").write_text('{"layers": [[0, 1]]}\\n{"layers": [[2]]}')
        ...     read(path)["ids"]
        [[[0, 1]], [[2, -1]]]
    """
    rows: list[dict[str, Any]] = []
    line = 0
    for line, text in lines(path):
        where = f"{path}, line {line}"
        with door(where):
            try:
                row = json.loads(text)
            except ValueError as error:
                raise TraceError(f"{where}: expected one whole JSON object: {error}") from error
            _check(row, rows[0] if rows else row, experts, where)
            rows.append(row)
    if not rows:
        raise TraceError(f"{path} holds no token: expected one JSON object a line with 'layers'")
    first = rows[0]
    if first.get("tokens", len(rows)) != len(rows):
        raise TraceError(f"{path}, read to line {line}: expected {first['tokens']} tokens, as the first line says, "
                         f"found {len(rows)}; is the file whole?")
    K = max(int(first.get("K", 0)), *(len(ids) for row in rows for ids in row["layers"]))

    def padded(key: str, nothing: float) -> list[list[list[float]]]:
        return [[[*ids, *[nothing] * (K - len(ids))] for ids in row[key]] for row in rows]

    return {"ids": padded("layers", -1), "weights": padded("weights", 0.0) if "weights" in first else None,
            "phase": [row.get("phase", DECODE) for row in rows], "meta": first.get("meta", {}),
            "tokens": [row["token"] for row in rows] if "token" in first else None, "experts": first.get("experts")}


def _check(row: Any, first: Any, experts: int | None, where: str) -> None:
    """One token has the form of the first, and its experts are in range."""
    if not isinstance(row, dict) or not row.get("layers") or not _lists(row["layers"], int):
        raise TraceError(f"{where}: expected an object with 'layers', a list of lists of expert ids")
    if len(row["layers"]) != len(first["layers"]):
        raise TraceError(f"{where}: expected {len(first['layers'])} layers, as on the first line, "
                         f"found {len(row['layers'])}")
    for key in ("experts", "K", "tokens"):
        most = MOST_EXPERTS if key != "tokens" else row.get(key)
        if row is first and key in row and not (type(row[key]) is int and 0 <= row[key] <= most):
            raise TraceError(f"{where}: expected {key!r}, a whole number from 0, found {row[key]!r}")
    if row is first and not isinstance(row.get("meta", {}), dict):
        raise TraceError(f"{where}: expected 'meta', an object, found {row['meta']!r}")
    known = experts if experts is not None else first.get("experts")
    for ids in row["layers"]:
        if any(e < 0 or e >= MOST_EXPERTS for e in ids):
            raise TraceError(f"{where}: expert ids are whole numbers from 0 to {MOST_EXPERTS - 1}")
        if known is not None and ids and max(ids) >= known:
            raise TraceError(f"{where}: expert {max(ids)} is out of range, ids go from 0 to {known - 1}")
        if len(set(ids)) != len(ids):
            raise TraceError(f"{where}: the experts of one layer must be distinct")
    if "weights" in first and not (_lists(row.get("weights"), int, float) and
                                   [len(w) for w in row["weights"]] == [len(ids) for ids in row["layers"]]):
        raise TraceError(f"{where}: expected 'weights' with one number per expert, as in 'layers'")
    if "weights" in first and not all(0 <= w < math.inf for ws in row["weights"] for w in ws):
        raise TraceError(f"{where}: weights are finite numbers from 0")
    if type(row.get("phase", DECODE)) is not int or row.get("phase", DECODE) not in (PREFILL, DECODE):
        raise TraceError(f"{where}: expected 'phase' 0 or 1, found {row['phase']!r}")
    if "token" in first and not (type(row.get("token")) is int and -(2**63) <= row["token"] < 2**63):
        raise TraceError(f"{where}: expected 'token', a whole number, as on the first line")


def _lists(value: Any, *kinds: type) -> bool:
    """Whether ``value`` is a list of lists of such things."""
    return isinstance(value, list) and all(
        isinstance(ids, list) and all(type(e) in kinds for e in ids) for ids in value)


def write(trace: Trace, path: Path) -> None:
    """All but router logits; unused places are left out, so that they come back behind the used ones.

    Raises:
        TraceError: a trace without tokens, which would leave no line.
    """
    if not len(trace):
        raise TraceError(f"{path}: a .jsonl has one line a token, and this trace has none; write .npz")
    meta = plain(trace.meta)
    with whole(path) as file:
        for row in _rows(trace, meta):
            file.write(json.dumps(row) + "\n")


def _rows(trace: Trace, meta: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for t in range(len(trace)):
        ids = trace.ids[t].tolist()
        row: dict[str, Any] = {"tok": t, "layers": [[e for e in one if e >= 0] for one in ids],
                               "phase": int(trace.phase[t])}
        if trace.weights is not None:       # str gives the shortest digits that are this float32
            row["weights"] = [[float(str(w)) for w, e in zip(ws, one, strict=True) if e >= 0]
                              for ws, one in zip(trace.weights[t], ids, strict=True)]
        if trace.tokens is not None:
            row["token"] = int(trace.tokens[t])
        if t == 0:
            row |= {"experts": trace.experts, "K": trace.K, "tokens": len(trace), "meta": meta}
        yield row
