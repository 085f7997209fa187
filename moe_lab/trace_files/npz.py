"""``.npz``: NumPy's own archive, the whole trace in it, compressed.

Knows the names of the arrays. Refuses pickles and archives that are cut off.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_lab.errors import TraceError
from moe_lab.trace_files.meta import as_json
from moe_lab.trace_files.whole import whole

if TYPE_CHECKING:
    from moe_lab.trace import Trace

OPTIONAL = ("weights", "tokens", "logits")


def read(path: Path, experts: int | None = None) -> dict[str, Any]:
    """The fields of a trace, arrays of the file's own types.

    Raises:
        TraceError: a damaged archive, pickles, or no array ``ids`` (T, L, K) of whole numbers.
    """
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive, np.load(raw, allow_pickle=False) as file:
            if (broken := archive.testzip()) is not None:
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
    known = {"ids", "phase", *OPTIONAL}
    return {**{name: found[name] for name in known & set(found)}, "meta": meta,
            "experts": found["experts"][()] if "experts" in found else None}


def write(trace: Trace, path: Path) -> None:
    """All of the trace, arrays as they are: ids (T, L, K) int32, weights float32, logits (T, L, E) float16.

    Example:
        >>> import tempfile
        >>> from moe_lab.trace import Trace
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(Trace(ids=np.array([[[0, 1]], [[2, 1]]]), experts=4), path := Path(folder) / "a.npz")
        ...     found = read(path)
        >>> found["ids"].tolist(), int(found["experts"])
        ([[[0, 1]], [[2, 1]]], 4)
    """
    arrays: dict[str, Any] = {"ids": trace.ids, "phase": trace.phase, "experts": np.int64(trace.experts),
                              "meta": np.array(as_json(trace.meta))}
    more = {name: value for name in OPTIONAL if (value := getattr(trace, name)) is not None}
    with whole(path, "wb") as file:
        np.savez_compressed(file, **arrays, **more)
