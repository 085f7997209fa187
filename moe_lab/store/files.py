"""Weight files, held open: opened once, before their headers are looked at, and read by everybody through that.

Knows paths, descriptors and what the system says of a file; knows nothing of what is in it. A file that is renamed,
replaced or deleted is read on as it was opened. One that is changed in place is refused: its bytes may be another
model's.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.errors import ReadError, foreign

_CLOSED = "the files are closed; load the model again"
_CHANGED = "the file was changed in place after the model was loaded from it; load the model again"
_MOST_BYTES = 1 << 30
"""Bytes of one system call; some systems refuse more than two gigabytes."""


class WeightFiles(Sequence[Path]):
    """The weight files of a checkpoint, as a sequence of absolute paths with an open descriptor for each.

    Closed by ``close``, or when nobody has it any more. Without descriptors it only names files that are elsewhere.
    Safe to read from many threads at once.

    >>> from moe_lab.models import resolve_model
    >>> files = WeightFiles.open([resolve_model("pocket") / "model.safetensors"])
    >>> start = np.empty(8, np.uint8)
    >>> files.fill(0, [start], offset=0)
    >>> files[0].name, len(files.descriptors), int(start.view(np.uint64)[0]) < files.size(0)
    ('model.safetensors', 1, True)
    """

    def __init__(self, paths: Iterable[Path], descriptors: Iterable[int] = ()) -> None:
        self.paths = tuple(Path(os.path.abspath(path)) for path in paths)
        self._open = list(descriptors)
        self._seen = [os.fstat(descriptor) for descriptor in self._open]
        self._marks = [_mark(seen) for seen in self._seen]
        self._end = weakref.finalize(self, _close, self._open)

    @classmethod
    def open(cls, paths: Iterable[Path]) -> WeightFiles:
        """Open all of ``paths``; ``CheckpointError`` names one that cannot be."""
        paths, descriptors = tuple(paths), list[int]()
        try:
            for path in paths:
                with foreign(f"{path} cannot be opened"):
                    descriptors.append(os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
            return cls(paths, descriptors)
        except BaseException:
            _close(descriptors)
            raise

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the files are read through, in the order of the paths; empty once they are closed."""
        return tuple(self._open)

    def size(self, number: int) -> int:
        """Bytes of a file."""
        return self._seen[number].st_size

    def fill(self, number: int, buffers: Sequence[np.ndarray], offset: int) -> None:
        """Fill ``buffers`` (uint8), one after the other, with the bytes of a file from ``offset`` on.

        Raises ``OSError`` where the file was changed in place since it was opened, cannot be read, or is closed, and
        ``EOFError`` where it ends too early; the buffers' contents are then undefined.
        """
        descriptor = self._descriptor(number)
        wanted = sum(map(len, buffers))
        got = os.preadv(descriptor, buffers, offset) if wanted <= _MOST_BYTES else 0
        if got != wanted:
            self._finish(number, buffers, offset, got)
        self._check(number)

    def check(self) -> None:
        """Raise ``ReadError`` where a file was changed in place since it was opened, or is closed."""
        for number, path in enumerate(self.paths):
            try:
                self._check(number)
            except OSError as error:
                raise ReadError(f"{path}: {error}") from error

    def close(self) -> None:
        """Close all files; reading afterwards raises ``OSError``."""
        self._end()

    def __getitem__(self, number: Any) -> Any:
        return self.paths[number]

    def __len__(self) -> int:
        return len(self.paths)

    def _descriptor(self, number: int) -> int:
        try:
            return self._open[number]
        except IndexError:
            raise OSError(_CLOSED) from None

    def _finish(self, number: int, buffers: Sequence[np.ndarray], offset: int, got: int) -> None:
        """The rest after a short read: a signal, a network disk, more than one call gives."""
        for buffer in buffers:
            done = min(got, len(buffer))
            got -= done
            while done < len(buffer):
                more = os.preadv(self._descriptor(number), [buffer[done : done + _MOST_BYTES]], offset + done)
                if not more:
                    self._check(number)
                    raise EOFError(f"the file ends at {offset + done:,}, {len(buffer) - done:,} bytes short")
                done += more
            offset += len(buffer)

    def _check(self, number: int) -> None:
        """``OSError`` unless the file is what it was; after a read, so that no change can come in between."""
        now = os.fstat(self._descriptor(number))
        if _mark(now) != self._marks[number]:
            self._judge(number, now)

    def _judge(self, number: int, now: os.stat_result) -> None:
        """Let pass what a new link, name, mode or owner does to a file; ``OSError`` for what may be new contents."""
        then = self._seen[number]
        if (now.st_dev, now.st_ino) != (then.st_dev, then.st_ino):
            raise OSError(_CLOSED)                      # and its descriptor given to another file meanwhile
        contents = (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns)
        beside = _surroundings(now) != _surroundings(then) or not _leads_to(self.paths[number], now)
        if not (contents and beside):
            raise OSError(_CHANGED)
        self._seen[number], self._marks[number] = now, _mark(now)


def _mark(seen: os.stat_result) -> tuple[int, ...]:
    """What stays as it is while nobody touches a file."""
    return seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino, seen.st_dev


def _surroundings(seen: os.stat_result) -> tuple[int, ...]:
    """What may change, and with it the time of the last change (ctime), while the contents stay."""
    return seen.st_nlink, seen.st_mode, seen.st_uid, seen.st_gid


def _leads_to(path: Path, seen: os.stat_result) -> bool:
    """Whether ``path`` still names that file; a file that was moved has a new ctime, too."""
    try:
        return os.path.samestat(os.stat(path), seen)
    except OSError:
        return False


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
