"""Looks at a session now and then, so that dashboards show what code does without a word to them.

Knows a clock and a method. Holds what it looks at only while it looks.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable

PULSE_S = 0.25


class Pulse:
    """Calls a bound method every ``PULSE_S`` seconds in a thread, until ``end()`` or until its object is gone."""

    def __init__(self, look: Callable[[], object]) -> None:
        self._over = threading.Event()
        there = weakref.WeakMethod(look)
        threading.Thread(target=_beat, args=(there, self._over), name="moe-lab-pulse", daemon=True).start()

    def end(self) -> None:
        """Look no more."""
        self._over.set()


def _beat(there: weakref.WeakMethod[Callable[[], object]], over: threading.Event) -> None:
    while not over.wait(PULSE_S):
        look = there()
        if look is None:
            return
        with contextlib.suppress(Exception):        # a look that fails is one picture less
            look()
        del look
