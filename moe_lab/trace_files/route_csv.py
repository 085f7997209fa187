"""``.csv``: a route_trace v1, one row per token, layer and slot, as BigMoeOnEdge writes it.

Knows ``#`` lines of key=value, a line of column names, then rows. What we write says in its header how many rows
follow and holds the trace's meta as JSON. Router logits do not fit here.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_lab.errors import TraceError
from moe_lab.spec import MOST_EXPERTS
from moe_lab.trace_files.meta import as_json
from moe_lab.trace_files.phases import DECODE, PREFILL
from moe_lab.trace_files.strange import door, lines
from moe_lab.trace_files.whole import whole

if TYPE_CHECKING:
    from moe_lab.trace import Trace

COLUMNS = ("turn", "phase", "step", "layer", "slot", "expert")
_META = "# meta "

Place = dict[int, tuple[int, float]]
"""Expert and weight by slot."""
Key = tuple[int, int, int]
"""Turn, phase, step."""


class _Rows:
    """What was read so far."""

    def __init__(self, experts: int | None) -> None:
        self.given = experts
        self.header: dict[str, str] = {}
        self.meta: dict[str, Any] | None = None
        self.names: list[str] = []
        self.places: dict[Key, dict[int, Place]] = {}
        self.tokens: dict[Key, int] = {}
        self.count = 0

    def number(self, key: str) -> int | None:
        """A whole number that the header gives."""
        return int(self.header[key]) if self.header.get(key, "").isdecimal() else None

    @property
    def experts(self) -> int | None:
        return self.given if self.given is not None else self.number("n_expert")


def read(path: Path, experts: int | None = None) -> dict[str, Any]:
    """The fields of a trace, arrays (T, L, K): ids int32, -1 where a token has fewer, weights float32.

    Raises:
        TraceError: a row that is none, an id out of range, a slot twice or missing, fewer rows than the header says.

    Example:
        >>> import tempfile
        >>> text = "turn,phase,step,layer,slot,expert\\n0,1,0,0,0,5\\n0,1,0,0,1,2\\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (path := Path(folder) / "a.csv").write_text(text)
        ...     read(path)["ids"].tolist()
        [[[5, 2]]]
    """
    rows = _Rows(experts)
    line, text = 0, ""
    for line, text in lines(path):
        where = f"{path}, line {line}"
        with door(where):
            if text.lstrip(' "').startswith("#"):
                _take_comment(text, rows, where)
            elif not rows.names:
                rows.names = _cells(text)
                if missing := [name for name in COLUMNS if name not in rows.names]:
                    raise TraceError(f"{where}: expected a line of column names with {', '.join(missing)}")
            elif any(cells := _cells(text)):    # a spreadsheet's blank line has commas
                _take_row(cells, rows, where)
    if not rows.places:
        raise TraceError(f"{path}, line {line}: expected rows of {', '.join(rows.names or COLUMNS)}; there are none")
    cut = int(not text.endswith(("\n", "\r")))
    if (wanted := rows.number("n_row")) is not None and wanted != rows.count - cut:
        raise TraceError(f"{path}, read to line {line}: expected {wanted} rows, as the header says, found "
                         f"{rows.count - cut} whole ones; is the file whole?")
    return _gather(rows, f"{path}, read to line {line}")


def _cells(text: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([text], skipinitialspace=True))]


def _take_comment(text: str, rows: _Rows, where: str) -> None:
    if text.startswith('"'):                    # a spreadsheet took it for cells, and put quotes round some
        text = ",".join(next(csv.reader([text])))
    text = text.rstrip(" ,\r\n")
    if text.startswith(_META):
        try:
            rows.meta = json.loads(text[len(_META):])
        except ValueError as error:
            raise TraceError(f"{where}: expected JSON after '# meta': {error}") from error
    elif not text.startswith("# layer="):
        rows.header |= {key: value for key, mark, value in (word.partition("=") for word in text[1:].split()) if mark}


def _take_row(row: list[str], rows: _Rows, where: str) -> None:
    if len(row) != len(rows.names):
        raise TraceError(f"{where}: expected {len(rows.names)} columns ({', '.join(rows.names)}), found {len(row)}")
    value = dict(zip(rows.names, row, strict=True))
    try:
        turn, phase, step, layer, slot, expert = (int(_plain(value[name])) for name in COLUMNS)
        weight = float(_plain(value.get("weight", "0")))
        token = int(_plain(value["token"])) if "token" in value else None
    except ValueError as error:
        raise TraceError(f"{where}: expected whole numbers for {', '.join(COLUMNS)} and a number for weight: "
                         f"{error}") from None
    if phase not in (PREFILL, DECODE) or min(layer, slot, expert) < 0 or max(slot, expert) >= MOST_EXPERTS:
        raise TraceError(f"{where}: expected phase 0 or 1, layer from 0, slot and expert from 0 to {MOST_EXPERTS - 1}, "
                         f"found {value}")
    if not 0 <= weight < math.inf or not -(2**63) <= (token or 0) < 2**63:
        raise TraceError(f"{where}: expected a weight that is finite and from 0, and a token of 64 bits, found {value}")
    if rows.experts is not None and expert >= rows.experts:
        raise TraceError(f"{where}: expert {expert} is out of range, ids go from 0 to {rows.experts - 1}")
    key = turn, phase, step
    taken = rows.places.setdefault(key, {}).setdefault(layer, {})
    if slot in taken or expert in [e for e, _ in taken.values()]:
        raise TraceError(f"{where}: slot {slot} or expert {expert} is there twice for turn {turn}, step {step}, "
                         f"layer {layer}")
    if token is not None and rows.tokens.setdefault(key, token) != token:
        raise TraceError(f"{where}: expected token {rows.tokens[key]}, as before for turn {turn}, step {step}, "
                         f"found {token}")
    taken[slot] = (expert, weight)
    rows.count += 1


def _plain(cell: str) -> str:
    """A cell to be read as a number. Python takes ``1_0`` for 10, and nobody else does."""
    return cell.replace("_", "?")


def _gather(rows: _Rows, where: str) -> dict[str, Any]:
    """Rows by token, layer and slot as arrays; a place must have all its slots, by the header or without a gap."""
    layers = {layer: place for place, layer in enumerate(sorted({layer for at in rows.places.values()
                                                                 for layer in at}))}
    wanted, K = rows.number("n_expert_used"), rows.number("n_slot") or 0
    keys = sorted(rows.places)
    for key in keys:
        for layer, taken in rows.places[key].items():
            if len(taken) != (wanted or len(taken)) or max(taken) >= len(taken):
                raise TraceError(f"{where}: turn {key[0]}, step {key[2]}, layer {layer} has slots {sorted(taken)}, "
                                 f"expected 0 to {(wanted or max(taken) + 1) - 1}; is the file whole?")
            K = max(K, len(taken))
    if K > MOST_EXPERTS:
        raise TraceError(f"{where}: expected n_slot up to {MOST_EXPERTS}, found {K}")
    ids = np.full((len(keys), len(layers), K), -1, dtype=np.int32)
    weights = np.zeros(ids.shape)
    for t, key in enumerate(keys):
        for layer, taken in rows.places[key].items():
            for slot, (expert, weight) in taken.items():
                place = t, layers[layer], slot
                ids[place], weights[place] = expert, weight
    return {"ids": ids, "weights": weights if "weight" in rows.names else None, "phase": [key[1] for key in keys],
            "tokens": [rows.tokens[key] for key in keys] if rows.tokens else None, "experts": rows.number("n_expert"),
            "meta": rows.meta if rows.meta is not None else {**rows.header, "layers": list(layers)}}


def write(trace: Trace, path: Path) -> None:
    """All but router logits; unused places are left out, so that they come back behind the used ones.

    A prompt after generated tokens begins a new turn; ``step`` counts the tokens of the whole trace.

    Raises:
        TraceError: a token or a layer without any expert, which would leave no row.
    """
    used = trace.ids >= 0
    for what, along in (("token", (1, 2)), ("layer", (0, 2))):
        empty = np.nonzero(~used.any(axis=along))[0]
        if empty.size or not trace.uses:
            raise TraceError(f"{path}: a .csv has one row an expert, and {what} {int(empty[0]) if empty.size else 0} "
                             "uses none; write .npz, which holds everything")
    numbers, meta = _layers(trace), as_json(trace.meta)
    turns = np.cumsum(np.diff(trace.phase.astype(np.int8), prepend=trace.phase[:1].astype(np.int8)) < 0)
    names = [*COLUMNS, *(["weight"] if trace.weights is not None else []),
             *(["token"] if trace.tokens is not None else [])]
    full = "n_expert_used" if used.all() else "n_slot"
    with whole(path) as file:
        file.write(f"# route_trace v1\n# n_layer={trace.L} n_expert={trace.experts} {full}={trace.K} "
                   f"n_row={trace.uses}\n{_META}{meta}\n{','.join(names)}\n")
        for t, layers in enumerate(trace.ids.tolist()):
            head = f"{turns[t]},{trace.phase[t]},{t}"
            tail = "" if trace.tokens is None else f",{trace.tokens[t]}"
            for place, ids in enumerate(layers):
                weights = None if trace.weights is None else trace.weights[t, place]
                kept = [k for k, e in enumerate(ids) if e >= 0]
                for slot, k in enumerate(kept):
                    weight = "" if weights is None else f",{weights[k]!s}"
                    file.write(f"{head},{numbers[place]},{slot},{ids[k]}{weight}{tail}\n")


def _layers(trace: Trace) -> list[int]:
    """Numbers of the layers, as the model counts them where the trace knows."""
    known = trace.meta.get("layers")
    if (isinstance(known, list) and len(known) == trace.L and all(type(n) is int and n >= 0 for n in known)
            and known == sorted(set(known))):
        return known
    return list(range(trace.L))
