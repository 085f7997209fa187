"""The engine's log of changes as marks on the time lines: each change once, in words, whoever made it.

Knows the log and the history. Knows no view and makes no change.
"""

from __future__ import annotations

import threading
from typing import Any

from moe_lab.engine.applied import Applied
from moe_lab_widgets.controls import KINDS, words_of
from moe_lab_widgets.history import History
from moe_lab_widgets.wishes import SAMPLING


class Follower:
    """Reads ``engine.applied`` on from where it was, from any thread, and marks what is new in ``history``."""

    def __init__(self, engine: Any, history: History) -> None:
        self._engine, self._history = engine, history
        self._seen = _newest(engine.applied)
        self._before: dict[str, Any] = {}
        """Policies before the last mark of their kind."""
        self._lock = threading.Lock()

    def follow(self) -> bool:
        """Mark what is new; returns whether anything is. To be called before a token is put into the history that was
        routed under the change."""
        applied = self._engine.applied
        if _newest(applied) == self._seen:
            return False
        with self._lock:
            new = [change for change in applied if change.number > self._seen]
            self._seen = _newest(applied)
            for change in new:
                if not change.error:
                    self._mark(change)
        return bool(new)

    def _mark(self, change: Applied) -> None:
        by = "" if change.by == "dashboard" else change.by
        for knob, words in self._said(change):
            self._history.mark(knob, words, by)

    def _said(self, change: Applied) -> list[tuple[str, str]]:
        """(knob, words) of the marks that a change makes."""
        value, before = change.value, change.before
        if change.knob == "cache":
            return [("slots", f"{value} slots")]
        if change.knob == "reset":
            return [("reset", "cache emptied")]
        if change.knob == "disk":
            return [("bandwidth", f"disk {value / 1e6:g} MB/s")]
        if change.knob in KINDS:
            if not self._history.moves(change.knob):
                self._before[change.knob] = before
            return [(change.knob, words_of(value, self._before[change.knob]) or words_of(value, before))]
        if change.knob == "sampling" and before is not None:
            changed = [name for name in SAMPLING if getattr(value, name) != getattr(before, name)]
            return [(name, f"no {name}" if getattr(value, name) is None else f"{name} {getattr(value, name):g}")
                    for name in changed]
        return []


def _newest(applied: tuple[Applied, ...]) -> int:
    return applied[-1].number if applied else 0
