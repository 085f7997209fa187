"""The routes and figures of one run, for its trace, its digest and its statistics.

One thread writes, any may read: rows that are written once are never written again, and sums are read whole.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections.abc import Iterable

import numpy as np

from moe_lab.engine.records import Phase, Times
from moe_lab.engine.seqlock import Seqlock
from moe_lab.forks import renew_in_child
from moe_lab.kernels.ledger import rows_of
from moe_lab.kernels.record import Counts, Log

ROWS = 256
"""Tokens that a new record has room for."""

NOTHING = Counts(0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)


def times_of(counts: Counts) -> Times:
    """Where the seconds went."""
    return Times(counts.wait_s, counts.route_s, counts.experts_s, counts.rest_s)


def phase_of(counts: Counts) -> Phase:
    """The same numbers for people."""
    return Phase(counts.tokens, counts.hits, counts.misses, counts.swapped, counts.mass, counts.routes,
                 counts.read_bytes, times_of(counts))


LATELY = 200
"""Generated tokens that are looked at to see whether a text repeats itself."""


def distinct_share(ids: Iterable[int], n: int = 4) -> float:
    """Share of the ``n``-grams of ``ids`` that are distinct; NaN of fewer than ``n`` ids.

    >>> distinct_share([1, 2, 3, 4, 1, 2, 3, 4]), distinct_share(range(8))
    (0.8, 1.0)
    """
    ids = list(ids)
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


class Recorder:
    """Every token of a run, and sums for each phase. ``lock`` is the writer's."""

    def __init__(self, L: int, K: int, lock: Seqlock) -> None:
        self.tokens = 0
        """Tokens of the passes that were finished; rows of ``log`` that hold something."""
        self.log = Log.empty(ROWS, L, K)
        self.written: list[int] = []
        """Ids of the tokens that were generated."""
        self.exact = True
        """Whether all passes were exact."""
        self.settings: list[str] = []
        """What the passes ran under, in words, a new one wherever it changed; empty before the first."""
        self._rows, self._lock = rows_of(self.log), lock
        self._hash = [hashlib.blake2b(digest_size=16) for _ in range(L)]
        self._hashed = 0
        self._hashing = threading.Lock()
        renew_in_child(self)

    def after_fork(self) -> None:
        """In a child: whoever was hashing is not there."""
        self._hashing = threading.Lock()

    def rows(self, tokens: int) -> np.ndarray:
        """Where the ledger enters ``tokens`` more; a pass that is cut off leaves no row behind."""
        have, want = len(self.log.phase), self.tokens + tokens
        if want > have:
            self.log = self.log.larger(max(want, 2 * have))
            self._rows = rows_of(self.log)
        return self._rows

    def under(self, setting: str, exact: bool) -> None:
        """A pass ran under ``setting``."""
        self.exact &= exact
        if not self.settings or setting != self.settings[-1]:
            self.settings.append(setting)

    @property
    def phases(self) -> tuple[Phase, Phase]:
        """Figures of prefill and decode."""
        prefill, decode = (self._lock.read(functools.partial(self.log.sums, phase)) for phase in (0, 1))
        return phase_of(prefill), phase_of(decode)

    def digest(self) -> str:
        """Hash of all routes; the same for one pass or many."""
        with self._hashing:
            tokens = self.tokens
            new = self.log.ids[self._hashed : tokens]
            for layer, one in enumerate(self._hash):
                one.update(np.ascontiguousarray(new[:, layer]))
            self._hashed = tokens
            whole = hashlib.blake2b(digest_size=16)
            for one in self._hash:
                whole.update(one.digest())
            return whole.hexdigest()

    @property
    def distinct(self) -> float:
        """Share of the 4-grams of the last 200 generated tokens that are distinct; NaN where there are none."""
        return distinct_share(self.written[-LATELY:])

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids (T, L, K) int32, gates (T, L, K) float32, phase (T,) uint8: copies."""
        tokens = self.tokens
        ids, gates, phase = (array[:tokens].copy() for array in self.log[:3])
        return ids, gates, phase
