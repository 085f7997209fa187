"""Where MoE Lab keeps what may be lost: the platform's folder for caches."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The folder, which need not be there yet.

    Raises:
        OSError: a user who has no home.
    """
    named = {"darwin": "", "win32": "LOCALAPPDATA"}.get(sys.platform, "XDG_CACHE_HOME")
    if folder := os.environ.get(named):
        return Path(folder) / "moe-lab"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise FileNotFoundError(f"there is no home folder: {error}") from error
    usual = {"darwin": "Library/Caches", "win32": "AppData/Local"}.get(sys.platform, ".cache")
    return home / usual / "moe-lab"
