"""The hit rate that every cache size would have had, kept up token by token.

Knows routes (ids in the order of their touch). Knows no engine, no cache and no policy: the curve is exact
for LRU with the routing as it was.

An LRU cache of C slots holds the C experts used last. So an expert hits exactly where fewer than C others
were used since its own last use: its *reuse distance* is that count plus one, and the share of uses with a
distance of at most C is the hit rate at C (Mattson, Gecsei, Slutz, Traiger 1970, stack algorithms).
All K experts of a token are judged against the stack before that token, as the engine judges them.
"""

from __future__ import annotations

import numpy as np

WINDOW = 512
"""Tokens that the curve speaks of."""


class ReuseCurve:
    """Reuse distances of the last ``window`` tokens of L layers with E experts and K uses a token.

    >>> curve = ReuseCurve(L=1, E=4, K=1)
    >>> for expert in (0, 1, 0, 1, 2):
    ...     curve.add(np.array([[expert]]))
    >>> curve.hit_rate().tolist()          # at 0, 1, 2, 3, 4 slots: two of five uses hit from two slots on
    [0.0, 0.0, 0.4, 0.4, 0.4]
    """

    def __init__(self, L: int, E: int, K: int, window: int = WINDOW) -> None:
        self.L, self.E, self.K = L, E, K
        self.window = window
        self._rows = np.arange(L)[:, None]
        self._stamp = np.full((L, E), -1, dtype=np.int64)
        self._clock = 0
        self._ring = np.zeros((window, L, K), dtype=np.int16)
        self._tokens = 0
        self._counts = np.zeros(E + 2, dtype=np.int64)

    @property
    def tokens(self) -> int:
        """Tokens that the curve speaks of."""
        return min(self._tokens, len(self._ring))

    def add(self, ids: np.ndarray) -> None:
        """One token: ``ids`` (L, K) integer, -1 where fewer were used, each row in the order of touch."""
        unused = ids < 0
        safe = np.where(unused, 0, ids)
        stamps = np.take_along_axis(self._stamp, safe, axis=1)
        distance = 1 + (self._stamp[:, None, :] > stamps[:, :, None]).sum(axis=2, dtype=np.int16)
        distance[stamps < 0] = self.E + 1
        distance[unused] = 0
        row = self._tokens % len(self._ring)
        if self._tokens >= len(self._ring):
            np.subtract.at(self._counts, self._ring[row].ravel(), 1)
        np.add.at(self._counts, distance.ravel(), 1)
        self._ring[row] = distance
        self._tokens += 1
        order = self._clock + np.arange(self.K)
        if unused.any():
            for layer, row_ids in enumerate(ids):
                self._stamp[layer, row_ids[row_ids >= 0]] = order[: np.count_nonzero(row_ids >= 0)]
        else:
            self._stamp[self._rows, ids] = order
        self._clock += self.K

    def hit_rate(self) -> np.ndarray:
        """(E + 1,) float64: the hit rate with 0, 1, ... E slots a layer."""
        uses = self._counts[1:].sum()
        hits = np.concatenate([[0], np.cumsum(self._counts[1 : self.E + 1])])
        rate: np.ndarray = hits / max(1, int(uses))
        return rate

    def forget(self) -> None:
        """Start the count anew; the stack stays."""
        self._counts[:] = 0
        self._tokens = 0
