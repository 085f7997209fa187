"""What has to be made anew in the child of a fork: locks that a thread of the parent held, threads that are not there.

Knows objects and that they can mend themselves; knows neither threads nor engines.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """Has locks or threads of its own."""

    def after_fork(self) -> None:
        """Make them anew; called in the child, where only the thread that forked is left."""


_THINGS: weakref.WeakSet[Forked] = weakref.WeakSet()


def renew_in_child(thing: Forked) -> None:
    """Call ``thing.after_fork()`` in every child that is forked while ``thing`` lives."""
    _THINGS.add(thing)


def _renew() -> None:
    for thing in list(_THINGS):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
