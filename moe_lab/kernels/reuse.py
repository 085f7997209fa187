"""Reuse distances: the hit rate of LRU for all cache sizes at once.

Knows recorded ids. The set that LRU holds in C slots is always the C experts used most recently (also under the
rule that a token's experts protect each other, for C >= K), so an expert hits exactly in the caches larger than
the number of others used since. Source: Mattson, Gecsei, Slutz, Traiger, IBM Systems Journal 9 (1970).
"""

from __future__ import annotations

import numpy as np

from moe_lab.errors import SettingError
from moe_lab.kernels.jit import jit


class ReuseDistances:
    """Counts reuse distances of one layer as tokens come; curves for sizes from K on.

    Args:
        E: experts of the layer.

    Example:
        >>> reuse = ReuseDistances(4)
        >>> reuse.add(np.array([[0, 1], [1, 2], [0, 2]], dtype=np.int32))
        >>> reuse.hits()[2:].tolist(), reuse.uses
        ([2, 3, 3], 6)
    """

    def __init__(self, E: int) -> None:
        self.E = E
        self.uses = 0
        """Expert uses counted."""
        self.counts = np.zeros(E, dtype=np.int64)
        """(E,) int64: uses by the number of other experts used since the last use; first uses are in none."""
        self._order = np.full(E, -1, dtype=np.int32)

    def add(self, ids: np.ndarray) -> None:
        """Count tokens ``ids`` (T, K) int32, -1 for none, in the order in which experts are touched."""
        ids = np.require(ids, np.int32, ["C", "A", "W"])
        if ids.size and not (ids.min() >= -1 and ids.max() < self.E):
            raise SettingError(f"ids must be from -1 to {self.E - 1}, not from {ids.min()} to {ids.max()}")
        self.uses += int(_count(ids, self._order, self.counts))

    def hits(self) -> np.ndarray:
        """Hits (E + 1,) int64 of LRU by number of slots; sizes under K mean nothing."""
        return np.concatenate([[0], np.cumsum(self.counts)])


def lru_hit_rates(ids: np.ndarray, E: int) -> np.ndarray:
    """Hit rate (E + 1,) float64 of LRU over ``ids`` (T, K) int32 by slots, from an empty start; NaN under K slots."""
    reuse = ReuseDistances(E)
    reuse.add(ids)
    rates = reuse.hits() / max(1, reuse.uses)
    rates[: ids.shape[1]] = np.nan
    return rates


@jit
def _count(ids: np.ndarray, order: np.ndarray, counts: np.ndarray) -> int:
    """``order`` (E,) int32: experts, the most recent first, -1 behind the last that was ever used."""
    uses = 0
    for t in range(ids.shape[0]):
        for k in range(ids.shape[1]):           # all are looked up before any is touched
            if ids[t, k] >= 0:
                uses += 1
                place = 0
                while place < order.size and order[place] >= 0 and order[place] != ids[t, k]:
                    place += 1
                if place < order.size and order[place] >= 0:
                    counts[place] += 1
        for k in range(ids.shape[1]):
            if ids[t, k] >= 0:
                place = 0
                while order[place] >= 0 and order[place] != ids[t, k]:
                    place += 1
                for i in range(place, 0, -1):
                    order[i] = order[i - 1]
                order[0] = ids[t, k]
    return uses


def lru_hit_rates_slow(ids: np.ndarray, E: int) -> np.ndarray:
    """The slow twin of :func:`lru_hit_rates`: one cache after another, each the most recently used experts."""
    rates = np.full(E + 1, np.nan)
    for C in range(ids.shape[1], E + 1):
        recent: list[int] = []
        hits = 0
        for row in ids:
            chosen = [int(e) for e in row if e >= 0]
            hits += sum(e in recent[:C] for e in chosen)
            for e in chosen:
                recent = [e] + [other for other in recent if other != e]
        rates[C] = hits / max(1, int((ids >= 0).sum()))
    return rates
