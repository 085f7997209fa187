"""The record of all tokens: its arrays, row by row and expert by expert.

Knows what stands where. Who enters it is ``ledger``; who reads it, and when it is whole, is ``engine.telemetry``'s.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np


class Ring(NamedTuple):
    """The last N tokens, one row a token, written in a circle; bytes and seconds of a pass stand at its last token."""

    ids: np.ndarray
    """(N, L, K) int32, as the next three in falling gate weight; -1 where fewer than K were used."""
    hits: np.ndarray
    """(N, L, K) bool."""
    rank: np.ndarray
    """(N, L, K) int16."""
    evicted: np.ndarray
    """(N, L, K) int32."""
    read_bytes: np.ndarray
    """(N, L) int64."""
    wait_s: np.ndarray
    """(N, L) float64, as the next two."""
    route_s: np.ndarray
    experts_s: np.ndarray
    total_s: np.ndarray
    """(N,) float64: seconds of the whole pass over its tokens."""
    phase: np.ndarray
    """(N,) uint8."""
    logits: np.ndarray
    """(M, L, E) float32 of the last token of a pass, M <= N."""
    resident: np.ndarray
    """(M, L, E) bool: before that token."""

    @property
    def capacity(self) -> int:
        """Tokens it holds: N."""
        return len(self.ids)

    @classmethod
    def empty(cls, N: int, M: int, L: int, E: int, K: int) -> Self:
        """A ring of no token yet."""
        return cls(np.full((N, L, K), -1, np.int32), np.zeros((N, L, K), np.bool_), np.zeros((N, L, K), np.int16),
                   np.full((N, L, K), -1, np.int32), np.zeros((N, L), np.int64), np.zeros((N, L)), np.zeros((N, L)),
                   np.zeros((N, L)), np.zeros(N), np.zeros(N, np.uint8), np.zeros((M, L, E), np.float32),
                   np.zeros((M, L, E), np.bool_))


class Totals(NamedTuple):
    """What is known of every expert."""

    experts: np.ndarray
    """(L, E, 3) int64: uses since the start, hits, token of the last use; side by side, for they change together."""
    resident: np.ndarray
    """(L, E) bool, after the last token."""
    scores: np.ndarray
    """(L, E) float32: what the routing policy gave for the last token."""

    @property
    def uses(self) -> np.ndarray:
        """(L, E) int64, since the start."""
        return self.experts[..., 0]

    @property
    def hits(self) -> np.ndarray:
        """(L, E) int64."""
        return self.experts[..., 1]

    @property
    def last_use(self) -> np.ndarray:
        """(L, E) int64: token of the last use, -1 for never."""
        return self.experts[..., 2]

    @classmethod
    def empty(cls, L: int, E: int) -> Self:
        """Of no token yet."""
        made = cls(np.zeros((L, E, 3), np.int64), np.zeros((L, E), np.bool_), np.zeros((L, E), np.float32))
        made.last_use[:] = -1
        return made


class Counts(NamedTuple):
    """The numbers of a pass, over all its tokens and layers."""

    tokens: int
    hits: int
    misses: int
    swapped: int
    routes: int
    """Tokens times layers."""
    read_bytes: int
    mass: float
    """Sum of the gate mass kept."""
    wait_s: float
    route_s: float
    experts_s: float
    rest_s: float
    """What is left of the seconds of the pass."""


WHOLE = 6
OTHER = len(Counts._fields) - WHOLE
"""The first six of them are whole numbers, the others are not."""


class Log(NamedTuple):
    """All tokens of a run, one row a token, and the sums of their counts."""

    ids: np.ndarray
    """(N, L, K) int32."""
    gates: np.ndarray
    """(N, L, K) float32."""
    phase: np.ndarray
    """(N,) uint8."""
    whole: np.ndarray
    """(2, WHOLE) int64: sums of the whole numbers of ``Counts``, for each phase."""
    other: np.ndarray
    """(2, OTHER) float64: of the others."""

    @classmethod
    def empty(cls, N: int, L: int, K: int) -> Self:
        """Room for N tokens."""
        return cls(np.empty((N, L, K), np.int32), np.empty((N, L, K), np.float32), np.empty(N, np.uint8),
                   np.zeros((2, WHOLE), np.int64), np.zeros((2, OTHER)))

    def larger(self, N: int) -> Self:
        """The same with room for N tokens; the sums are shared."""
        _, L, K = self.ids.shape
        larger = self.empty(N, L, K)._replace(whole=self.whole, other=self.other)
        for new, old in zip(larger[:3], self[:3], strict=True):
            new[: len(old)] = old
        return larger

    def sums(self, phase: int) -> Counts:
        """Counts of all passes of a phase."""
        return Counts._make([*self.whole[phase].tolist(), *self.other[phase].tolist()])


class Spent(NamedTuple):
    """What a pass read and how long it took, (L,)."""

    read_bytes: np.ndarray
    """int64."""
    wait_s: np.ndarray
    """float64, as the next two."""
    route_s: np.ndarray
    experts_s: np.ndarray

    @classmethod
    def empty(cls, L: int) -> Self:
        """Nothing spent."""
        return cls(np.zeros(L, np.int64), np.zeros(L), np.zeros(L), np.zeros(L))
