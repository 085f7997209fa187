"""The content of files as digests: each file is hashed whole, once, and hashed again only where it has changed.

Knows paths, open files and what the system says of a file (size, times, inode). Remembers digests in the folder for
what may be lost; where that is damaged or cannot be written to, files are hashed each time. Knows no formats.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from moe_lab.digests import Stretch, digest, digests
from moe_lab.errors import ReadError
from moe_lab.folders import cache_folder
from moe_lab.trace_files.whole import whole

REST_S = 2.0
"""Seconds since a file's last change after which its digest is remembered. Clocks of file systems are coarse: of two
changes within one tick the second leaves no mark."""


_known: dict[tuple[object, ...], str] = {}
"""The same by path and stamp for this process, which may have no folder to write to."""


class Stamp(NamedTuple):
    """By what a changed file is known without reading it: times in nanoseconds."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, file: str | Path | int) -> Stamp:
        """The stamp of a path or an open file."""
        found = os.stat(file)
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def contents(paths: Sequence[str | Path], descriptors: Sequence[int] | None = None,
             memory: Path | None = None) -> list[str]:
    """The digest of each file's content; names and places do not count.

    Args:
        descriptors: the files as they are open, to be read instead of what now lies at ``paths``.
        memory: the folder in which digests are remembered; by default one in the platform's folder for caches.

    Raises:
        ReadError: a file that is gone or cannot be read, or changes while it is read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     one, other = Path(folder) / "one", Path(folder) / "other"
        ...     sizes = [path.write_bytes(b"same") for path in (one, other)]
        ...     first, second = contents([one, other], memory=Path(folder))
        >>> first == second
        True
    """
    with contextlib.ExitStack() as stack, _told():
        files = [_File(path, _open(path, stack) if descriptors is None else descriptors[i])
                 for i, path in enumerate(paths)]
        folder = _memory() if memory is None else memory
        found = [_recall(folder, file) for file in files]
        new = [i for i, one in enumerate(found) if one is None]
        for i, made in zip(new, digests([files[i].stretch for i in new], "hash the weights"), strict=True):
            files[i].check()
            _remember(folder, files[i], made)
            found[i] = made
    return [one for one in found if one is not None]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the system says of a file, as an error of this family."""
    try:
        yield
    except ReadError:
        raise
    except OSError as error:
        raise ReadError(f"a file of the weights cannot be read: {error}; load the model again") from error


def _open(path: str | Path, stack: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    stack.callback(os.close, descriptor)
    return descriptor


class _File:
    """An open file, its path, and its stamp when it was first looked at."""

    def __init__(self, path: str | Path, descriptor: int) -> None:
        self.path, self.descriptor = os.path.abspath(path), descriptor
        self.stamp = Stamp.of(descriptor)

    @property
    def stretch(self) -> Stretch:
        """All its bytes."""
        return Stretch(self.stamp.size, self._read)

    def _read(self, start: int, end: int) -> bytes:
        parts, at = [], start
        while at < end:         # the system may give less than was asked for
            parts.append(os.pread(self.descriptor, end - at, at))
            if not parts[-1]:
                raise ReadError(f"{self.path} became shorter while it was read; load the model again")
            at += len(parts[-1])
        return b"".join(parts)

    def check(self) -> None:
        """Raise a ReadError where it is not as it was."""
        if Stamp.of(self.descriptor) != self.stamp:
            raise ReadError(f"{self.path} changed while it was read; load the model again")

    @property
    def words(self) -> dict[str, str | int]:
        """What a digest is remembered by."""
        return {"path": self.path, **self.stamp._asdict()}


# --- memory -----------------------------------------------------------------------------------------


def _memory() -> Path | None:
    try:
        return cache_folder() / "files"
    except OSError:
        return None


def _place(folder: Path, file: _File) -> Path:
    """A small file for each path, so that processes never write to one that others need."""
    return folder / f"{digest(file.path)}.json"


def _recall(folder: Path | None, file: _File) -> str | None:
    """The digest of a file that is as it was when it was hashed."""
    if (known := _known.get((file.path, *file.stamp))) is not None or folder is None:
        return known
    try:
        kept = json.loads(_place(folder, file).read_bytes())
        return str(kept["digest"]) if kept["check"] == digest(file.words, kept["digest"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _remember(folder: Path | None, file: _File, found: str) -> None:
    """Keep a digest, unless the file may change once more within the same tick of the clock."""
    if time.time_ns() - max(file.stamp.mtime_ns, file.stamp.ctime_ns) < REST_S * 1e9:
        return
    _known[file.path, *file.stamp] = found
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with whole(_place(folder, file)) as kept:
            json.dump({**file.words, "digest": found, "check": digest(file.words, found)}, kept)
