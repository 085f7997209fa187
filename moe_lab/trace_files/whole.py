"""Files that appear whole or not at all.

Knows one trick: write beside the target, then move it there. Knows no format.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def whole(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A new file that takes the place of ``path`` when the block ends well; else ``path`` stays as it was.

    Args:
        mode: ``"w"`` for UTF-8 text without translated line ends, ``"wb"`` for bytes.

    Raises:
        OSError: the folder is not there, or cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole(Path(folder) / "a.txt") as file:
        ...         _ = file.write("all of it")
        ...     (Path(folder) / "a.txt").read_text()
        'all of it'
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(part, mode, **text) as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
