"""The pocket model: a small mixture of experts that this project trained on free text, and its texts.

Knows where the packaged checkpoint and the held-out excerpts lie; loads nothing. Training is
``python -m moe_lab.pocket.train``, the interim export ``... .export``, the model card ``... .card``.

>>> from moe_lab import pocket
>>> pocket.folder().name
'model'
>>> pocket.held_out("python").splitlines()[0]
'\"""Text wrapping and filling.'
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from moe_lab.errors import SettingError

__all__ = ["folder", "held_out"]

World = Literal["python", "prose"]

_HERE = Path(__file__).parent


def folder() -> Path:
    """The folder of the packaged checkpoint; what ``ml.load("pocket")`` opens."""
    return _HERE / "model"


def held_out(world: World | str) -> str:
    """An excerpt (at most 96 kB) of documents that the pocket model has never been trained on.

    ``"python"`` is source of the standard library, ``"prose"`` chapters of the Python manual; both
    are under the licence of the Python Software Foundation (``held_out/README.md`` names them).
    Raises ``SettingError`` for any other world.
    """
    path = _HERE / "held_out" / f"{world}.txt"
    if world not in ("python", "prose"):
        raise SettingError(
            f"no held-out text {world!r}: there are two worlds, type held_out('python') or held_out('prose')"
        )
    return path.read_text(encoding="utf-8")
