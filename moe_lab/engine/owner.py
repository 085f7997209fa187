"""Who may use the engine now, and what others wish to change in the meantime.

Whoever generates owns the engine; a second thread is refused. A change asked for from outside waits and
is made between two tokens, by the owner; where nobody generates it is made at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from moe_lab.errors import BusyError


class Owner:
    """A lock that knows its thread, counts how often it was taken, and keeps wishes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._depth = 0
        self._wishes: dict[str, Callable[[], None]] = {}
        self.in_pass = False

    def take(self) -> None:
        """Own the engine, or raise ``BusyError`` if another thread does."""
        with self._lock:
            if self._thread not in (None, threading.get_ident()):
                raise BusyError(
                    "the engine is generating in another thread; wait for it, or stop it first "
                    "(lab.stop() where a dashboard drives it)"
                )
            self._thread = threading.get_ident()
            self._depth += 1

    def drop(self) -> None:
        """Give it back; wishes that are still waiting are granted."""
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._thread = None
                self._grant()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Own the engine for the length of a block."""
        self.take()
        try:
            yield
        finally:
            self.drop()

    @property
    def busy(self) -> bool:
        """Whether any thread owns the engine."""
        return self._thread is not None

    def wish(self, name: str, change: Callable[[], None]) -> None:
        """Make ``change`` now if nobody else generates, else between two tokens; a newer wish of that name wins."""
        with self._lock:
            self._wishes[name] = change
            if self._thread is None or (self._thread == threading.get_ident() and not self.in_pass):
                self._grant()

    def between_tokens(self) -> None:
        """Grant the wishes; called by the owner before a pass."""
        if self._wishes:
            with self._lock:
                self._grant()

    def _grant(self) -> None:
        wishes, self._wishes = self._wishes, {}
        for change in wishes.values():
            change()
