"""What is wrong with a file that should be there, in words.

Knows what the file system says of a path, and the marks that broken downloads leave. Knows no format.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from moe_lab.errors import CheckpointError

_POINTER = b"version https://git-lfs"
_UNFINISHED = (".aria2", ".incomplete", ".part", ".crdownload", ".download")


def require(path: Path) -> None:
    """Raise ``CheckpointError`` with the reason where there is no file to read at ``path``."""
    if words := trouble(path):
        raise CheckpointError(f"{path} {words}")


def trouble(path: Path) -> str:
    """Why there is no file to read at ``path``, as the end of a sentence; empty where there is one.

    >>> trouble(Path("no-such-folder/config.json")), trouble(Path(__file__))
    ('is not there', '')
    """
    try:
        seen = os.stat(path)
    except FileNotFoundError:
        return _gone(path)
    except (OSError, ValueError) as error:
        return f"cannot be looked at: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISDIR(seen.st_mode):
        return "is a folder, where a file should be"
    if not stat.S_ISREG(seen.st_mode):
        return "is a device or a pipe, where a file should be"
    if not os.access(path, os.R_OK):
        return f"may not be read by you; type chmod u+r {path}"
    if seen.st_size == 0:
        return "is empty (0 bytes): it was not fetched or not written to its end; fetch it again"
    if os.path.lexists(f"{path}.aria2"):
        return f"is not whole: {path.name}.aria2 beside it says that its download has not finished; go on with it"
    return _pointer(path)


def unfinished(folder: Path) -> str:
    """Names the trace of a download into ``folder`` that did not finish, as a clause; empty where there is none."""
    for place in (folder, folder / ".cache" / "huggingface" / "download"):
        try:
            names = sorted(name for name in os.listdir(place) if name.endswith(_UNFINISHED))
        except OSError:
            continue
        if names:
            return f" (a download has not finished: {place / names[0]})"
    return ""


def _gone(path: Path) -> str:
    if not path.is_symlink():
        return "is not there"
    return f"is a link to {os.readlink(path)}, which is gone; fetch again"


def _pointer(path: Path) -> str:
    """Whether git left a note in the place of a large file."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if start != _POINTER:
        return ""
    return f"is only a pointer of git-lfs: the file itself was not fetched; type git lfs pull in {path.parent}"
