"""The hit rate that every cache size would have had, kept up as tokens come.

Knows routes (ids in the order of their touch). Knows no engine, no cache and no policy: the curve is exact
for LRU with the routing as it was.

An LRU cache of C slots holds the C experts used last. So an expert hits exactly where fewer than C others
were used since its own last use: its *reuse distance* is that count plus one, and the share of uses with a
distance of at most C is the hit rate at C (Mattson, Gecsei, Slutz, Traiger 1970, stack algorithms).
All K experts of a token are judged against the stack before that token, as the engine judges them.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.jit import jit
from moe_lab.kernels.recorded import recorded

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
        self._order = np.full((L, E), -1, dtype=np.int32)
        self._ring = np.zeros((window, L, K), dtype=np.int32)
        self._tokens = 0
        self._counts = np.zeros(E + 2, dtype=np.int64)
        self.forget()

    @property
    def tokens(self) -> int:
        """Tokens that the curve speaks of."""
        return min(self._tokens, len(self._ring))

    def add(self, ids: np.ndarray) -> None:
        """Tokens in order: ``ids`` (T, L, K) int32, or one (L, K); -1 where fewer were used, each row in the order of
        touch. A SettingError for ids that are no experts of a layer, or stand twice in a row."""
        ids = recorded(ids.reshape(-1, self.K), self.E).reshape(-1, self.L, self.K)
        _add(ids, self._order, self._ring, self._counts, self._tokens % self.window)
        self._tokens += len(ids)

    def hit_rate(self) -> np.ndarray:
        """(E + 1,) float64: the hit rate with 0, 1, ... E slots a layer."""
        uses = self._counts[1:].sum()
        hits = np.concatenate([[0], np.cumsum(self._counts[1 : self.E + 1])])
        rate: np.ndarray = hits / max(1, int(uses))
        return rate

    def forget(self) -> None:
        """Start the count anew; the stack stays."""
        self._ring[:] = 0
        self._counts[:] = 0
        self._counts[0] = self._ring.size
        self._tokens = 0


@jit
def _add(ids: np.ndarray, order: np.ndarray, ring: np.ndarray, counts: np.ndarray, row: int) -> None:
    """Count tokens ``ids`` (T, L, K) int32 and let the oldest of the window go.

    ``order`` (L, E) int32: experts, the most recent first, -1 behind the last that was ever used. ``ring`` (window, L,
    K) int32: distances, 0 for an unused place, E + 1 for a first use; ``row`` is the oldest. ``counts`` (E + 2,) int64:
    places of the ring by distance. The slow twin is ``moe_lab.kernels.reuse.lru_hit_rates_slow``.
    """
    L, E = order.shape
    for t in range(ids.shape[0]):
        for layer in range(L):
            recent = order[layer]
            for k in range(ids.shape[2]):           # all are looked up before any is touched
                expert, distance = ids[t, layer, k], 0
                if expert >= 0:
                    while distance < E and recent[distance] >= 0 and recent[distance] != expert:
                        distance += 1
                    distance = distance + 1 if distance < E and recent[distance] >= 0 else E + 1
                counts[ring[row, layer, k]] -= 1
                counts[distance] += 1
                ring[row, layer, k] = distance
            for k in range(ids.shape[2]):
                expert, place = ids[t, layer, k], ring[row, layer, k] - 1
                if expert >= 0:
                    if place < E:
                        for j in range(k):          # those that lay deeper and were touched before pushed it down
                            place += ring[row, layer, j] > ring[row, layer, k]
                    else:
                        place = 0
                        while recent[place] >= 0:
                            place += 1
                    for i in range(place, 0, -1):
                        recent[i] = recent[i - 1]
                    recent[0] = expert
        row = (row + 1) % ring.shape[0]
