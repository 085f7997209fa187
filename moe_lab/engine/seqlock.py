"""A sequence lock: one writer that never waits, readers that read again where it wrote meanwhile.

Knows a counter and no data. It is odd while something is being changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from moe_lab.forks import renew_in_child

T = TypeVar("T")


class Seqlock:
    """The writer: ``begin()``, change, ``end()`` in a ``finally``. Readers: ``read(f)``.

    >>> lock = Seqlock()
    >>> lock.read(lambda: 7)
    7
    """

    def __init__(self) -> None:
        self._count = 0
        renew_in_child(self)

    def after_fork(self) -> None:
        """In a child: whoever was writing is not there to end it."""
        self._count += self._count & 1

    def begin(self) -> None:
        """A change begins."""
        self._count |= 1

    def end(self) -> None:
        """The change is through, or was cut off: readers must not wait for ever."""
        self._count = (self._count | 1) + 1

    def read(self, read: Callable[[], T]) -> T:
        """What ``read`` finds while nothing is changed; it may be called several times."""
        while True:
            count = self._count
            found = read()
            if count == self._count and count & 1 == 0:
                return found
            time.sleep(0.0001)
