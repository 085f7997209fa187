"""Files of strangers: one door that nothing but a TraceError leaves, and the lines of a text.

Knows what any file may hold and any library may raise. Knows no format.
"""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator
from pathlib import Path

from moe_lab.errors import TraceError


@contextlib.contextmanager
def door(where: str) -> Iterator[None]:
    """Whatever a malformed file makes somebody raise becomes a TraceError that begins with ``where``.

    TraceErrors pass, and so does an OSError: the file could not be had at all.

    Example:
        >>> with door("a.jsonl, line 3"):
        ...     [][0]
        Traceback (most recent call last):
        moe_lab.errors.TraceError: a.jsonl, line 3 is no trace: IndexError: list index out of range
    """
    try:
        yield
    except (TraceError, OSError):
        raise
    except Exception as error:      # MemoryError and RecursionError too: absurd sizes and depths are the file's
        said = next(iter(str(error).strip().splitlines()), "")
        raise TraceError(f"{where} is no trace: {type(error).__name__}{': ' if said else ''}{said[:200]}") from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text that are not blank, with their ends, each with its number from 1.

    A byte order mark at the start and line ends of any system are taken as they come.

    Raises:
        TraceError: a line that is not UTF-8.
        OSError: no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (path := Path(folder) / "a").write_bytes(codecs.BOM_UTF8 + b"one\\r\\n\\ntwo")
        ...     list(lines(path))
        [(1, 'one\\r\\n'), (3, 'two')]
    """
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise TraceError(f"{path}, line {number} is not text in UTF-8: {error.reason} at byte {error.start}"
                             ) from error
        if text.strip():
            yield number, text
