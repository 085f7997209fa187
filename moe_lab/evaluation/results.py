"""Results on disk, found again by what they are results of.

Knows keys, JSON and traces. A key is a hash of everything that steers a figure: the checkpoint's bytes, the text,
the window, both policies down to their code, the slots, the seed and the code that measures. Nothing is pickled,
and a file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

import moe_lab
from moe_lab.errors import SettingError, TraceError
from moe_lab.parameters import Schedule
from moe_lab.policy import Policy
from moe_lab.trace import Trace
from moe_lab.trace_files.whole import whole

_WHOLE = 1 << 28
"""A weight file of at most this many bytes is hashed whole; of a larger one, header, size and samples."""
_SAMPLES, _SAMPLE = 256, 1 << 16
_MEASURING = ("kernels/*.py", "models/*.py", "engine/moe_block.py", "engine/score.py", "evaluation/measure.py")
"""Sources whose change makes old results worthless."""


def default_folder() -> Path:
    """Where results are kept unless told: the platform's folder for caches."""
    home = Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "moe-lab" / "results"


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

    def get(self, key: str) -> dict[str, Any] | None:
        """The record of ``key``; None where there is none, or none that is whole."""
        if self.folder is None:
            return None
        try:
            record = json.loads(self._path(key, ".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Keep a record of plain values."""
        if self.folder is not None:
            with whole(self._place(key, ".json")) as file:
                json.dump(record, file)

    def get_trace(self, key: str) -> Trace | None:
        """The trace of ``key``, or None."""
        if self.folder is None:
            return None
        try:
            return Trace.read(self._path(key, ".npz"))
        except TraceError:
            return None

    def put_trace(self, key: str, trace: Trace) -> None:
        """Keep a trace."""
        if self.folder is not None:
            trace.write(self._place(key, ".npz"))

    def _path(self, key: str, suffix: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}{suffix}"

    def _place(self, key: str, suffix: str) -> Path:
        """The path to write to, its folder made."""
        path = self._path(key, suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def open_results(store: str | Path | Literal[False] | None) -> Results:
    """The folder that ``store`` means: None for the default one, False for none.

    Raises:
        SettingError: something else, or a folder that cannot be made.
    """
    if store is False:
        return Results(None)
    if store is not None and not isinstance(store, (str, Path)):
        raise SettingError(f"store={store!r} is not a folder; type a path, or store=False to keep nothing")
    folder = default_folder() if store is None else Path(store)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"results cannot be kept in {folder}: {error.strerror}; type store='another/folder', or "
                           "store=False to keep nothing") from error
    return Results(folder)


def digest(*parts: Any) -> str:
    """32 hex digits of values that JSON can hold.

    >>> digest("lru", 8) == digest("lru", 8) != digest("lru", 9)
    True
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def checkpoint(files: tuple[str, ...]) -> str:
    """A hash of weight files by their content (their names do not count), and of the configuration beside them.

    Raises:
        OSError: a file is gone.
    """
    return _checkpoint(tuple((name, os.stat(name).st_size, os.stat(name).st_mtime_ns) for name in sorted(files)))


@cache
def _checkpoint(files: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for name, size, _ in files:
        whole.update(size.to_bytes(8, "little"))
        with open(name, "rb") as file:
            if size <= _WHOLE:
                while block := file.read(1 << 22):
                    whole.update(block)
                continue
            for at in np.linspace(0, size - _SAMPLE, _SAMPLES).astype(np.int64).tolist():
                file.seek(at)
                whole.update(file.read(_SAMPLE))
    config = Path(files[0][0]).parent / "config.json"
    whole.update(config.read_bytes() if config.exists() else b"")
    return whole.hexdigest()


@cache
def code(*more: str) -> str:
    """A hash of the sources that make a sweep's figures, and of those that ``more`` patterns name."""
    root = Path(moe_lab.__file__).parent
    whole = hashlib.blake2b(digest_size=16)
    for pattern in (*_MEASURING, *more):
        for path in sorted(root.glob(pattern)):
            whole.update(path.read_bytes())
    return whole.hexdigest()


FUNCTIONS = ("rank", "keep", "touch", "left", "token")
"""What a policy class may have as functions."""


def policy_key(policy: Policy) -> list[Any]:
    """What a policy is, as plain values: name, parameters and a hash of its code, helpers and constants included."""
    tables = {key: list(getattr(policy, key)) for key in policy.tables()}
    return [policy.kind, policy.name, {key: _plain(value) for key, value in policy.values().items()}, tables,
            class_key(type(policy))]


def _plain(value: Any) -> Any:
    """A parameter's value as JSON can hold it."""
    return [list(step) for step in value.steps] if isinstance(value, Schedule) else value


def class_key(cls: type[Policy]) -> str:
    """A hash of a policy class: its functions and what they need."""
    functions = [getattr(cls, name, None) for name in FUNCTIONS]
    sizes = [cls.state_size, getattr(cls, "columns", 0), [[n, repr(p)] for n, p in cls.parameters().items()]]
    return digest(sizes, [None if function is None else _function(function, set()) for function in functions])


def _function(function: Callable[..., Any], seen: set[int]) -> str:
    """A hash of a function by its bytecode, and of the globals and closures it reads."""
    function = getattr(function, "py_func", function)
    if id(function) in seen:
        return "again"
    seen.add(id(function))
    inside = getattr(function, "__closure__", None) or ()
    body = function.__code__
    cells = {name: cell.cell_contents for name, cell in zip(body.co_freevars, inside, strict=True)}
    names = sorted(_names(body))
    around = {name: function.__globals__[name] for name in names if name in function.__globals__}
    return digest(_bytecode(body), {name: _value(value, seen) for name, value in {**around, **cells}.items()})


def _names(body: types.CodeType) -> set[str]:
    inner = [constant for constant in body.co_consts if isinstance(constant, types.CodeType)]
    return set(body.co_names).union(*(_names(one) for one in inner))


def _bytecode(body: types.CodeType) -> list[Any]:
    """Instructions, names and constants; texts, such as docstrings, do not steer a compiled function."""
    constants = [_bytecode(c) if isinstance(c, types.CodeType) else repr(c) for c in body.co_consts
                 if not isinstance(c, str)]
    return [body.co_code.hex(), list(body.co_names), constants]


def _value(value: Any, seen: set[int]) -> Any:
    """A plain stand-in for what a function reads."""
    if isinstance(value, np.ndarray):
        return hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()
    if hasattr(getattr(value, "py_func", value), "__code__"):
        return _function(value, seen)
    if isinstance(value, types.ModuleType | type):
        return value.__name__
    return repr(value)
