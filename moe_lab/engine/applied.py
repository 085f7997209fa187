"""What was changed on an engine, when and by whom: a short, numbered log that is read with the snapshot.

Knows changes, and the word that whoever makes them goes by. Changes nothing itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

KEPT = 64
"""Changes that are kept, the newest."""

_ACTOR: ContextVar[str] = ContextVar("moe_lab_actor", default="")


@dataclass(frozen=True)
class Applied:
    """One change that was made, or that could not be made when its turn came.

    >>> Applied(3, "cache", 16, 32, token=120, by="dashboard")
    3: cache 32 -> 16, from token 120 on, by dashboard
    """

    number: int
    """Counts all changes of an engine, from 1."""
    knob: str
    """``routing``, ``eviction``, ``cache`` (slots a layer), ``reset``, ``sampling`` or ``disk`` (bytes a second)."""
    value: Any
    """A policy, a number, an ``ml.Sampling``; None for a reset."""
    before: Any
    token: int
    """Tokens that had been routed by then: the first one under the change has this position."""
    by: str
    """``code``, ``dashboard``, or the thread that asked for it."""
    error: str = ""
    """Why it was not made; empty where it was."""

    def __repr__(self) -> str:
        what = self.knob if self.value is None else f"{self.knob} {self.before!r} -> {self.value!r}"
        if self.error:
            return f"{self.number}: {what}, asked by {self.by}, was not made: {self.error}"
        return f"{self.number}: {what}, from token {self.token} on, by {self.by}"


class ChangeLog:
    """The newest changes, as a tuple that is replaced and never altered: any thread may read it at any time."""

    def __init__(self) -> None:
        self.entries: tuple[Applied, ...] = ()

    def add(self, knob: str, value: Any, before: Any, token: int, by: str, error: str = "") -> None:
        """Note a change; called by one thread at a time."""
        number = self.entries[-1].number + 1 if self.entries else 1
        self.entries = (*self.entries, Applied(number, knob, value, before, token, by, error))[-KEPT:]


@contextmanager
def acting(name: str) -> Iterator[None]:
    """Changes asked for inside are noted as those of ``name``.

    >>> with acting("dashboard"):
    ...     actor()
    'dashboard'
    """
    token = _ACTOR.set(name)
    try:
        yield
    finally:
        _ACTOR.reset(token)


def acting_name() -> str:
    """The name given by ``acting``; empty outside."""
    return _ACTOR.get()


def actor() -> str:
    """Who asks for a change now: the name given by ``acting``, else ``code``, or the thread that the code runs in."""
    thread = threading.current_thread()
    return _ACTOR.get() or ("code" if thread is threading.main_thread() else f"thread {thread.name}")
