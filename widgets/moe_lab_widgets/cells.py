"""Which dashboards a notebook's cell has made: one that is run again lets go of those of its run before.

Knows a kernel's messages and that dashboards can be closed. Where a front end does not say which cell it runs, nothing
is closed.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple, Protocol


class Board(Protocol):
    """What a cell can show."""

    def close(self) -> None:
        """Let go of everything."""


class Run(NamedTuple):
    """One run of one cell."""

    cell: str
    run: str


_MADE: dict[str, tuple[str, list[weakref.ref[Board]]]] = {}
"""By cell: its last run, and the dashboards of that run."""


def present(shell: Any) -> Run | None:
    """The cell that ``shell`` (an IPython shell, or None) runs now, where that is known."""
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return None
    message = kernel.get_parent("shell") or {}
    cell, run = message.get("metadata", {}).get("cellId"), message.get("header", {}).get("msg_id")
    return Run(cell, run) if isinstance(cell, str) and isinstance(run, str) else None


def move_in(board: Board, here: Run | None) -> None:
    """``board`` stands in the output of ``here``: dashboards of an earlier run of that cell, whose output is gone, are
    closed."""
    if here is None:
        return
    run, boards = _MADE.get(here.cell, ("", []))
    if run == here.run:
        boards.append(weakref.ref(board))
        return
    _MADE[here.cell] = here.run, [weakref.ref(board)]
    for there in boards:
        if (old := there()) is not None:
            old.close()
