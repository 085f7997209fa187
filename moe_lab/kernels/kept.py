"""Kernels kept on disk: where they lie, and what of it is taken for true.

numba keeps a kernel in two files, an index and its machine code, and believes both. Here every file carries a digest
and says what it was written for. What cannot be read, is damaged, or was written for another kernel is a miss: it is
compiled again and written anew. What cannot be written is not kept, and nobody is stopped by it.

Knows files, and numba's cache. What a kernel is told apart by is the business of ``jit``, whose folder may be trusted
that of ``trust``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import pickle
import sys
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

import numba
from numba.core import config
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    IndexDataCacheFile,
    InTreeCacheLocator,
    UserProvidedCacheLocator,
    UserWideCacheLocator,
)
from numba.core.serialize import dumps

from moe_lab.kernels import switches, trust

DIGEST = 32
"""Bytes of a digest."""


class KeptFiles(IndexDataCacheFile):
    """The index and the files of machine code of one function.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> files = KeptFiles(folder.name, "double-1.py", "the sources' hash")
    >>> files.load("float64") is None
    True
    >>> files.save("float64", b"machine code")
    >>> files.load("float64"), files.load("int64")
    (b'machine code', None)
    >>> folder.cleanup()
    """

    def load(self, key: Any) -> Any:
        """What was kept for ``key``; None where it is not there, not whole, or not for this key."""
        name = self._load_index().get(key)
        return None if name is None else self._read(name, key)

    def save(self, key: Any, data: Any) -> None:
        """Keep ``data`` for ``key``.

        Raises:
            OSError: it cannot be written; no part of it is left.
        """
        index = self._load_index()
        # Two processes may take one name at a time. Whoever comes last is kept, and the other's key does not fit.
        free = (name for n in itertools.count(1) if (name := self._data_name(n)) not in index.values())
        name = index.get(key) or next(free)
        self._write(name, key, data)
        self._save_index({**index, key: name})

    def _load_index(self) -> dict[Any, str]:
        return self._read(self._index_name, self._source_stamp) or {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._write(self._index_name, self._source_stamp, overloads)

    def _read(self, name: str, subject: Any) -> Any:
        """The value in the file ``name``, None unless it is whole and was written for ``subject``."""
        try:
            with open(self._data_path(name), "rb") as file:
                digest, body = file.read(DIGEST), file.read()
                ours = trust.is_ours(os.fstat(file.fileno()))
            if not ours or digest != _digest(body):
                return None
            written_for, value = pickle.loads(body)
        except Exception:           # a folder in its place, no permission, a class that has moved since
            return None
        return value if written_for == subject else None

    def _write(self, name: str, subject: Any, value: Any) -> None:
        path = self._data_path(name)
        beside = f"{path}.{uuid.uuid4().hex[:16]}"
        body = dumps((subject, value))
        try:
            with open(trust.make_file(beside), "wb") as file:
                file.write(_digest(body) + body)
            if os.path.isdir(path):
                os.rename(path, f"{beside}.aside")
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise


def _digest(body: bytes) -> bytes:
    """Of what a file holds, and of the numba that wrote it: another's pickles are not read."""
    return hashlib.sha256(numba.__version__.encode() + body).digest()


_first_meaning = functools.cache(os.path.realpath)
"""A folder without links, and where a relative one lay when it was first asked for: the program may go elsewhere."""


class _Ours:
    """A place for kept kernels that is made by our rules, and is none if others may write to it."""

    def get_cache_path(self) -> str:
        """The folder."""
        return _first_meaning(super().get_cache_path())  # type: ignore[misc]

    def ensure_cache_path(self) -> None:
        """Make the folder where it is missing; an ``OSError`` says that kernels cannot be kept there."""
        refuse_if_open(self.get_cache_path())
        trust.make_folder(self.get_cache_path())
        super().ensure_cache_path()  # type: ignore[misc]
        refuse_if_open(self.get_cache_path())       # somebody may have made it in between


class _Named(_Ours, UserProvidedCacheLocator):
    """The folder that NUMBA_CACHE_DIR names."""

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> Any:
        """The place for a function; None where there is none."""
        found = super().from_function(py_func, py_file)
        if found is None and config.CACHE_DIR and os.path.exists(py_file):
            say_once(f"kernels are not kept in NUMBA_CACHE_DIR={config.CACHE_DIR!r}, which is no folder that can be "
                     "written")
        return found


class _BesideSources(_Ours, InTreeCacheLocator):
    """``__pycache__``."""


class _OfUser(_Ours, UserWideCacheLocator):
    """The user's folder for caches."""

    def ensure_cache_path(self) -> None:
        """Make the folder; an ``OSError`` says that it cannot be, or that the system knows no home of this user."""
        if not os.path.isabs(self._cache_path):         # else a folder named "~" would be made wherever we are
            raise FileNotFoundError(self._cache_path)
        super().ensure_cache_path()


class _Places(CompileResultCacheImpl):
    _locator_classes: ClassVar = [_Named, _BesideSources, _OfUser]


class KernelCache(FunctionCache):
    """numba's cache of a kernel.

    Args:
        function: the plain function.
        stamp: a hash of all that its machine code follows from; another one is a miss.
        key: of a function that closes over others, in the place of what it closes over.

    Raises:
        RuntimeError: there is no folder that can be written.
        OSError: the one that numba was told to take cannot be.
    """

    _impl_class = _Places

    def __init__(self, function: Callable[..., Any], stamp: str, key: str | None) -> None:
        super().__init__(function)
        refuse_if_open(self._cache_path)        # numba may have been told of places other than ours
        self._key = key
        self._cache_file = KeptFiles(self._cache_path, self._impl.filename_base,
                                     (self._impl.locator.get_source_stamp(), stamp))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """The kernel for a signature, None where it has to be compiled."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:           # a whole file, and still not what this process can use
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel, if that can be done."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        key = super()._index_key(sig, codegen) if self._key is None else (sig, codegen.magic_tuple(), self._key)
        return (*key, switches.in_force())


def refuse_if_open(folder: str) -> None:
    """Raise ``PermissionError`` where others may write to ``folder`` or to one above it, and say so once."""
    why = trust.open_to_others(folder)
    if why:
        say_once(f"kept kernels in {folder} are not used, since {why}; NUMBA_CACHE_DIR can name a folder of your own")
        raise PermissionError(why)


_said: list[str] = []


def say_once(line: str) -> None:
    """A line on standard error, if nothing was said here before: one matter usually concerns many folders."""
    if not _said:
        print(f"moe_lab: {line}", file=sys.stderr)
        _said.append(line)
