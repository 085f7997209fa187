"""A trace: which experts each token used in each layer, as recorded. Read from files and written to them.

Knows ids, gate weights and the files they come in. Knows no policy and no model; replays stand in
``moe_lab.evaluation``. What cannot be read whole is refused whole, with the line.
"""

from __future__ import annotations

import csv
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.errors import TraceError

PREFILL, DECODE = 0, 1


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """The routes of T tokens through L layers, K experts each. Arrays are read-only.

    Raises:
        TraceError: shapes that do not fit, an id out of range, an expert twice in one place.

    Example:
        >>> trace = Trace(ids=np.array([[[0, 1]], [[2, 1]]]), experts=4)
        >>> trace
        Trace: 2 tokens (0 prefill, 2 decode), 1 layer x 4 experts, top-2, no weights
        >>> trace.digest()
        '9669f1ea1f85fba55126ea9965753bb0'
    """

    ids: np.ndarray
    """(T, L, K) int32, -1 where fewer than K experts were used."""
    weights: np.ndarray | None = None
    """(T, L, K) float32 gate weights, or None where none were recorded."""
    phase: np.ndarray = None  # type: ignore[assignment]
    """(T,) uint8: 0 prefill, 1 decode; None means all decode."""
    experts: int = None  # type: ignore[assignment]
    """Experts of a layer; None means the largest id + 1."""
    tokens: np.ndarray | None = None
    """(T,) int64 token ids, or None."""
    logits: np.ndarray | None = None
    """(T, L, E) float16 router logits, or None: enough to route again approximately, not exactly."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: plain values that JSON can hold. ``experts`` says ``"guessed"`` where they were."""

    def __post_init__(self) -> None:
        ids = np.array(self.ids, dtype=np.int32, order="C")
        if ids.ndim != 3:
            raise TraceError(f"ids must be (tokens, layers, K), not {ids.shape}")
        T = len(ids)
        meta = dict(self.meta)
        largest = int(ids.max(initial=-1))
        given: int | None = self.experts
        if given is None:
            meta["experts"] = "guessed"
        experts = largest + 1 if given is None else int(given)
        if largest >= experts or ids.min(initial=0) < -1:
            t, l, k = (int(i[0]) for i in np.nonzero((ids >= experts) | (ids < -1)))
            raise TraceError(f"token {t}, layer {l}: expert {ids[t, l, k]} is out of range, ids go from 0 to "
                             f"{experts - 1}")
        row = np.sort(ids, axis=2)
        twice = (row[..., 1:] == row[..., :-1]) & (row[..., 1:] >= 0)
        if twice.any():
            t, l, k = (int(i[0]) for i in np.nonzero(twice))
            raise TraceError(f"token {t}, layer {l}: expert {row[t, l, k]} twice; one place has distinct experts")
        phase = np.full(T, DECODE, np.uint8) if self.phase is None else _array(self.phase, np.uint8, (T,), "phase")
        weights = None if self.weights is None else _array(self.weights, np.float32, ids.shape, "weights")
        tokens = None if self.tokens is None else _array(self.tokens, np.int64, (T,), "tokens")
        if (phase > DECODE).any():
            raise TraceError(f"token {int(np.argmax(phase > DECODE))}: phase is 0 (prefill) or 1 (decode)")
        logits = None if self.logits is None else _array(self.logits, np.float16, (*ids.shape[:2], experts), "logits")
        values = {"ids": ids, "weights": weights, "phase": phase, "experts": experts, "tokens": tokens,
                  "logits": logits, "meta": meta}
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
            object.__setattr__(self, name, value)

    @property
    def L(self) -> int:
        """MoE layers."""
        return int(self.ids.shape[1])

    @property
    def K(self) -> int:
        """Experts of a token in a layer, at most."""
        return int(self.ids.shape[2])

    @property
    def uses(self) -> int:
        """Expert uses: ids that are not -1."""
        return int(np.count_nonzero(self.ids >= 0))

    @property
    def prefill(self) -> Trace:
        """The tokens of the prompt."""
        return self._cut(self.phase == PREFILL)

    @property
    def decode(self) -> Trace:
        """The tokens that were generated."""
        return self._cut(self.phase == DECODE)

    def _cut(self, which: np.ndarray) -> Trace:
        return replace(self, ids=self.ids[which], phase=self.phase[which],
                       weights=None if self.weights is None else self.weights[which],
                       tokens=None if self.tokens is None else self.tokens[which],
                       logits=None if self.logits is None else self.logits[which])

    def __len__(self) -> int:
        return len(self.ids)

    def digest(self) -> str:
        """32 hex digits that prove equal routes: a hash over the hashes of the layers' ids, token after token."""
        whole = hashlib.blake2b(digest_size=16)
        for layer in range(self.L):
            whole.update(hashlib.blake2b(self.ids[:, layer].astype("<i4").tobytes(), digest_size=16).digest())
        return whole.hexdigest()

    def __repr__(self) -> str:
        guess = " (the largest id + 1)" if self.meta.get("experts") == "guessed" else ""
        return (f"Trace: {len(self):,} tokens ({int((self.phase == PREFILL).sum()):,} prefill, "
                f"{int((self.phase == DECODE).sum()):,} decode), {self.L} layer{'s' if self.L != 1 else ''} x "
                f"{self.experts} experts{guess}, top-{self.K}, {'with' if self.weights is not None else 'no'} weights"
                f"{', router logits in float16' if self.logits is not None else ''}")

    @classmethod
    def read(cls, path: str | Path, experts: int | None = None) -> Trace:
        """The trace in a file: ``.npz`` (ours), ``.jsonl`` (one JSON object a token) or ``.csv`` (route_trace v1).

        Args:
            experts: experts of a layer, where the file does not say; else the largest id + 1 over all layers.

        Raises:
            TraceError: no such file, or one that is malformed or truncated: the line and what was expected.
        """
        path = Path(path)
        readers = {".npz": _read_npz, ".jsonl": _read_jsonl, ".csv": _read_csv}
        if path.suffix not in readers:
            raise TraceError(f"{path}: a trace is {', '.join(readers)}, not {path.suffix!r}")
        try:
            found = readers[path.suffix](path)
            found["experts"] = experts if experts is not None else found.get("experts")
            return cls(**found)
        except OSError as error:
            raise TraceError(f"{path} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise TraceError(f"{path} is not text: {error}") from error
        except TraceError as error:
            raise error if str(path) in str(error) else TraceError(f"{path}: {error}") from None

    def write(self, path: str | Path) -> None:
        """Write to ``path``: ``.npz`` (all of it) or ``.jsonl`` (all but router logits, readable)."""
        path = Path(path)
        if path.suffix == ".npz":
            arrays = {"ids": self.ids, "phase": self.phase, "experts": np.int64(self.experts),
                      "meta": np.array(json.dumps(dict(self.meta)))}
            optional = {"weights": self.weights, "tokens": self.tokens, "logits": self.logits}
            np.savez_compressed(path, **arrays, **{k: v for k, v in optional.items() if v is not None})  # type: ignore[arg-type]
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in self._rows()), encoding="utf-8")
        else:
            raise TraceError(f"{path}: a trace is written as .npz or .jsonl, not {path.suffix!r}")

    def _rows(self) -> Iterator[dict[str, Any]]:
        for t in range(len(self)):
            row: dict[str, Any] = {"tok": t, "layers": [[int(e) for e in ids if e >= 0] for ids in self.ids[t]],
                                   "phase": int(self.phase[t])}
            if self.weights is not None:
                row["weights"] = [[float(w) for w, e in zip(ws, ids, strict=True) if e >= 0]
                                  for ws, ids in zip(self.weights[t], self.ids[t], strict=True)]
            if self.tokens is not None:
                row["token"] = int(self.tokens[t])
            if t == 0:
                row |= {"experts": self.experts, "K": self.K, "meta": dict(self.meta)}
            yield row


def _array(values: Any, dtype: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    array = np.array(values, dtype=dtype, order="C")
    if array.shape != shape:
        raise TraceError(f"{what} must be {shape} to fit the ids, not {array.shape}")
    return array


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as whole, np.load(raw, allow_pickle=False) as file:
            if (broken := whole.testzip()) is not None:
                raise zipfile.BadZipFile(f"{broken} is damaged")
            found = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError) as error:
        raise TraceError(f"{path} is not a whole .npz file of plain arrays: {error}") from error
    if "ids" not in found or found["ids"].dtype.kind not in "iu":
        raise TraceError(f"{path}: expected an array 'ids' of whole numbers, found {', '.join(found) or 'nothing'}")
    try:
        meta = json.loads(str(found.pop("meta", "{}")))
    except ValueError as error:
        raise TraceError(f"{path}: 'meta' is not JSON: {error}") from error
    known = {"ids", "weights", "phase", "tokens", "logits"}
    return {**{name: found[name] for name in known & set(found)}, "meta": meta,
            "experts": int(found["experts"]) if "experts" in found else None}


def _read_jsonl(path: Path) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise TraceError(f"{path}, line {line}: expected one whole JSON object: {error}") from error
            _check_row(row, rows, f"{path}, line {line}")
            rows.append(row)
    if not rows:
        raise TraceError(f"{path} holds no token: expected one JSON object a line with 'layers'")
    K = max(int(rows[0].get("K", 0)), *(len(ids) for row in rows for ids in row["layers"]))
    experts = rows[0].get("experts")

    def padded(key: str, nothing: float) -> list[list[list[float]]]:
        return [[[*ids, *[nothing] * (K - len(ids))] for ids in row[key]] for row in rows]

    return {"ids": padded("layers", -1), "weights": padded("weights", 0.0) if "weights" in rows[0] else None,
            "phase": [row.get("phase", DECODE) for row in rows], "meta": rows[0].get("meta", {}),
            "tokens": [row["token"] for row in rows] if "token" in rows[0] else None, "experts": experts}


def _check_row(row: Any, before: list[dict[str, Any]], where: str) -> None:
    """One token of a .jsonl file has the form of those before it."""
    def lists(value: Any, *kinds: type) -> bool:
        return isinstance(value, list) and all(
            isinstance(ids, list) and all(type(e) in kinds for e in ids) for ids in value)

    if not isinstance(row, dict) or not lists(row.get("layers"), int):
        raise TraceError(f"{where}: expected an object with 'layers', a list of lists of expert ids")
    if before and len(row["layers"]) != len(before[0]["layers"]):
        raise TraceError(f"{where}: expected {len(before[0]['layers'])} layers, as on the first line, "
                         f"found {len(row['layers'])}")
    if any(e < 0 or e >= 2**31 for ids in row["layers"] for e in ids):
        raise TraceError(f"{where}: expert ids are whole numbers from 0")
    if any(len(set(ids)) != len(ids) for ids in row["layers"]):
        raise TraceError(f"{where}: the experts of one layer must be distinct")
    first = before[0] if before else row
    if "weights" in first and not (lists(row.get("weights"), int, float) and
                                   [len(w) for w in row["weights"]] == [len(ids) for ids in row["layers"]]):
        raise TraceError(f"{where}: expected 'weights' with one number per expert, as in 'layers'")
    if row.get("phase", DECODE) not in (PREFILL, DECODE):
        raise TraceError(f"{where}: expected 'phase' 0 or 1, found {row['phase']!r}")
    if "token" in first and type(row.get("token")) is not int:
        raise TraceError(f"{where}: expected 'token', a whole number, as on the first line")


_COLUMNS = ("turn", "phase", "step", "layer", "slot", "expert")


def _read_csv(path: Path) -> dict[str, Any]:
    """A route_trace v1: ``#`` lines of key=value, a line of column names, a row per token, layer and slot."""
    meta: dict[str, Any] = {}
    names: list[str] = []
    places: dict[tuple[int, int, int], dict[int, dict[int, tuple[int, float]]]] = {}
    line = 0
    with path.open(encoding="utf-8", newline="") as file:
        for line, text in enumerate(file, 1):
            if text.startswith("#"):
                if not text.startswith("# layer="):
                    meta |= {key: value for key, mark, value in (x.partition("=") for x in text[1:].split()) if mark}
                continue
            row = next(csv.reader([text]))
            if not names:
                names = row
                if missing := [name for name in _COLUMNS if name not in names]:
                    raise TraceError(f"{path}, line {line}: expected a line of column names with {', '.join(missing)}")
                continue
            _take_row(row, names, places, f"{path}, line {line}")
    if not places:
        raise TraceError(f"{path}, line {line}: expected rows of {', '.join(names or _COLUMNS)}; there are none")
    return _gather(path, line, meta, places, "weight" in names)


def _take_row(row: list[str], names: list[str], places: dict[Any, Any], where: str) -> None:
    if len(row) != len(names):
        raise TraceError(f"{where}: expected {len(names)} columns ({', '.join(names)}), found {len(row)}")
    value = dict(zip(names, row, strict=True))
    try:
        turn, phase, step, layer, slot, expert = (int(value[name]) for name in _COLUMNS)
        weight = float(value.get("weight", 0.0))
    except ValueError as error:
        raise TraceError(f"{where}: expected whole numbers for {', '.join(_COLUMNS)} and a number for weight: "
                         f"{error}") from None
    if phase not in (PREFILL, DECODE) or min(layer, slot, expert) < 0 or expert >= 2**31:
        raise TraceError(f"{where}: expected phase 0 or 1 and layer, slot, expert from 0, found {value}")
    taken = places.setdefault((turn, phase, step), {}).setdefault(layer, {})
    if slot in taken or expert in [e for e, _ in taken.values()]:
        raise TraceError(f"{where}: slot {slot} or expert {expert} is there twice for turn {turn}, step {step}, "
                         f"layer {layer}")
    taken[slot] = (expert, weight)


def _gather(path: Path, line: int, meta: dict[str, Any], places: dict[Any, Any], weighted: bool) -> dict[str, Any]:
    """Rows by token, layer and slot as arrays; a place must have all its slots, by the header or without a gap."""
    layers = sorted({layer for at in places.values() for layer in at})
    wanted = int(meta["n_expert_used"]) if str(meta.get("n_expert_used", "")).isdigit() else None
    K = max(1 + slot for at in places.values() for taken in at.values() for slot in taken)
    keys = sorted(places)
    ids = np.full((len(keys), len(layers), K), -1, dtype=np.int32)
    weights = np.zeros(ids.shape, dtype=np.float32)
    for t, key in enumerate(keys):
        for layer, taken in places[key].items():
            if sorted(taken) != list(range(wanted or len(taken))):
                raise TraceError(f"{path}, read to line {line}: turn {key[0]}, step {key[2]}, layer {layer} has slots "
                                 f"{sorted(taken)}, expected 0 to {(wanted or max(taken) + 1) - 1}; is the file whole?")
            for slot, (expert, weight) in taken.items():
                place = t, layers.index(layer), slot
                ids[place], weights[place] = expert, weight
    experts = meta.get("n_expert", "")
    return {"ids": ids, "weights": weights if weighted else None, "phase": [key[1] for key in keys],
            "meta": {**meta, "layers": layers}, "experts": int(experts) if str(experts).isdigit() else None}
