"""Results on disk, found again by what they are results of.

Knows folders, JSON and traces; what is in a key is ``keeping``'s business. Nothing is pickled, a file appears whole or
not at all, and one that holds something else than was kept under its name is as good as none. A folder that cannot be
written to costs the keeping, not the work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from moe_lab.digests import digest
from moe_lab.errors import SettingError, TraceError
from moe_lab.folders import cache_folder
from moe_lab.trace import Trace
from moe_lab.trace_files.whole import whole

_CHECK = "check"
"""Where a record's own digest stands in its file."""


class Results:
    """A folder of results; None keeps nothing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = Results(Path(folder))
    ...     results.put("0" * 32, {"loss": 1.5})
    ...     results.get("0" * 32), results.get("1" * 32)
    ({'loss': 1.5}, None)
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._told = False

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of ``key``; None where there is none, or none that is as it was kept."""
        if self.folder is None:
            return None
        try:
            record = json.loads(self._path(key, ".json").read_bytes())
            return record if record.pop(_CHECK) == digest(key, record) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Keep a record of plain values."""
        def write(path: Path) -> None:
            plain = json.loads(json.dumps(record))          # as it will be read
            with whole(path) as file:
                json.dump({**plain, _CHECK: digest(key, plain)}, file)

        self._keep(key, ".json", write)

    def get_trace(self, key: str) -> Trace | None:
        """The trace of ``key``, or None."""
        if self.folder is None:
            return None
        try:
            return Trace.read(self._path(key, ".npz"))
        except Exception:       # whatever a damaged archive makes a library raise
            return None

    def put_trace(self, key: str, trace: Trace) -> None:
        """Keep a trace."""
        self._keep(key, ".npz", trace.write)

    def _path(self, key: str, suffix: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}{suffix}"

    def _keep(self, key: str, suffix: str, write: Callable[[Path], None]) -> None:
        """Write to the path of ``key``, its folder made; say once that it cannot be done."""
        if self.folder is None:
            return
        path = self._path(key, suffix)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except (OSError, TraceError) as error:
            if not self._told:
                print(f"moe_lab: results are not kept: {error}", file=sys.stderr)
            self._told = True


def default_folder() -> Path:
    """Where results are kept unless told: in the platform's folder for caches.

    Raises:
        OSError: a user without a home.
    """
    return cache_folder() / "results"


def open_results(store: str | Path | Literal[False] | None) -> Results:
    """The folder that ``store`` means: None for the default one (where it cannot be made, nothing is kept), False for
    none.

    Raises:
        SettingError: something else, or a folder that cannot be made.
    """
    if store is False:
        return Results(None)
    if store is not None and not isinstance(store, (str, Path)):
        raise SettingError(f"store={store!r} is not a folder; type a path, or store=False to keep nothing")
    try:
        folder = default_folder() if store is None else Path(store)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        if store is None:
            print(f"moe_lab: results are not kept: {error}", file=sys.stderr)
            return Results(None)
        raise SettingError(f"results cannot be kept in {store}: {error}; type store='another/folder', or store=False "
                           "to keep nothing") from error
    return Results(folder)
