"""The routes and figures of one run, for its trace, its digest and its statistics.

One thread writes, any may read: rows that are written once are never written again, and sums are exchanged whole.
"""

from __future__ import annotations

import hashlib
import operator
import threading
from typing import NamedTuple

import numpy as np

from moe_lab.engine.records import Phase, Times
from moe_lab.kernels.ledger import Log, rows_of

ROWS = 256
"""Tokens that a new record has room for."""

class Counts(NamedTuple):
    """The numbers of a pass, made once a token; ``Phase`` is what people are shown."""

    tokens: int
    hits: int
    misses: int
    swapped: int
    mass: float
    routes: int
    read_bytes: int
    read_s: float
    route_s: float
    experts_s: float
    rest_s: float

    @property
    def times(self) -> Times:
        """Where the seconds went."""
        return Times(*self[7:])

    @property
    def phase(self) -> Phase:
        """The same for people."""
        return Phase(*self[:7], times=self.times)


NOTHING = Counts(0, 0, 0, 0, 0.0, 0, 0, 0.0, 0.0, 0.0, 0.0)


class Recorder:
    """Every token of a run, and sums for each phase."""

    def __init__(self, L: int, K: int) -> None:
        self.tokens = 0
        """Tokens of the passes that were finished; rows of ``log`` that hold something."""
        self.log = Log.empty(ROWS, L, K)
        self._rows = rows_of(self.log)
        self._sums = [NOTHING, NOTHING]
        self._hash = [hashlib.blake2b(digest_size=16) for _ in range(L)]
        self._hashed = 0
        self._hashing = threading.Lock()

    def rows(self, tokens: int) -> np.ndarray:
        """Where the ledger enters ``tokens`` more."""
        have, want = self._rows[0], self.tokens + tokens
        if want > have:
            larger = Log.empty(max(want, 2 * int(have)), *self.log.ids.shape[1:])
            for mine, old in zip(larger, self.log, strict=True):
                mine[: self.tokens] = old[: self.tokens]
            self.log, self._rows = larger, rows_of(larger)
        return self._rows

    def entered(self, phase: int, counts: Counts) -> None:
        """A pass stands in the log; one that was cut off never does."""
        self._sums[phase] = Counts._make(map(operator.add, self._sums[phase], counts))
        self.tokens += counts.tokens

    @property
    def phases(self) -> tuple[Phase, Phase]:
        """Figures of prefill and decode."""
        return self._sums[0].phase, self._sums[1].phase

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

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids (T, L, K) int32, gates (T, L, K) float32, phase (T,) uint8: copies."""
        tokens = self.tokens
        ids, gates, phase = (array[:tokens].copy() for array in self.log)
        return ids, gates, phase
