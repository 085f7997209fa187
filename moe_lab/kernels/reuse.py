"""Reuse distances: the hit rate of LRU for all cache sizes at once.

Knows recorded ids. The set that LRU holds in C slots is always the C experts used most recently (also under the
rule that a token's experts protect each other, for C >= K), so an expert hits exactly in the caches larger than
the number of others used since. Source: Mattson, Gecsei, Slutz, Traiger, IBM Systems Journal 9 (1970); counted in a
tree where experts are many: Bennett and Kruskal, IBM Journal of Research and Development 19 (1975).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moe_lab.errors import SettingError
from moe_lab.kernels.jit import jit
from moe_lab.kernels.recorded import recorded


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
        """Count tokens ``ids`` (T, K) int32, -1 for none, in the order in which experts are touched.

        Raises:
            SettingError: an id that is none of the layer's experts.
        """
        self.uses += int(_count(recorded(ids, self.E), self._order, self.counts))

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


class LRUProfile(NamedTuple):
    """What LRU does at every size, by windows of tokens. Columns are slots, 0 to E; those under K mean nothing."""

    misses: np.ndarray
    """(W, E + 1) int64."""
    waits: np.ndarray
    """(W, E + 1) int64: tokens that miss at least one expert."""


def lru_profile(ids: np.ndarray, E: int, window: int) -> LRUProfile:
    """Misses of LRU over ``ids`` (T, K) int32, -1 for none, at every size, in windows of ``window`` tokens.

    From an empty start; the windows only cut the counts.

    Raises:
        SettingError: an id that is not one of ``E`` experts, or windows of no token.

    Example:
        >>> lru_profile(np.array([[0, 1], [1, 2], [0, 2]], dtype=np.int32), E=4, window=2).misses[:, 2:].tolist()
        [[3, 3, 3], [1, 0, 0]]
    """
    ids = recorded(ids, E)
    if window < 1:
        raise SettingError(f"window={window} must be a number of tokens, 1 or more")
    counts, worst = np.zeros((2, -(-len(ids) // window), E + 1), dtype=np.int64)
    (_profile_wide if E >= WIDE else _profile)(ids, E, window, counts, worst)
    return LRUProfile(*(_beyond(found) for found in (counts, worst)))


def _beyond(found: np.ndarray) -> np.ndarray:
    """How many of each row are found at a column or behind it."""
    return np.cumsum(found[:, ::-1], axis=1)[:, ::-1]


WIDE = 128
"""From so many experts on distances are counted in a tree, not along a list."""


@jit
def _profile(ids: np.ndarray, E: int, window: int, counts: np.ndarray, worst: np.ndarray) -> None:
    """Count distances by window in ``counts``, each token's largest in ``worst``, both (W, E + 1); E: first use."""
    order = np.full(E, -1, np.int32)
    for t in range(ids.shape[0]):
        largest = -1
        for k in range(ids.shape[1]):
            if ids[t, k] >= 0:
                distance = _distance(order, ids[t, k])
                counts[t // window, distance] += 1
                largest = max(largest, distance)
        if largest >= 0:
            worst[t // window, largest] += 1
        for k in range(ids.shape[1]):
            if ids[t, k] >= 0:
                _to_front(order, ids[t, k])


@jit
def _profile_wide(ids: np.ndarray, E: int, window: int, counts: np.ndarray, worst: np.ndarray) -> None:
    """As :func:`_profile`: a tree of sums over ticks, a 1 at the last use of each expert.

    When the ticks run out the experts are given new ones, in the same order.
    """
    ticks = 4 * E + ids.shape[1]
    tree, last = np.zeros(ticks + 1, np.int64), np.zeros(E, np.int64)     # tick of the last use, from 1; 0 for never
    now, known = 0, 0
    for t in range(ids.shape[0]):
        largest = -1
        for k in range(ids.shape[1]):
            if ids[t, k] >= 0:
                tick = last[ids[t, k]]
                distance = known - _below(tree, tick) if tick else E
                counts[t // window, distance] += 1
                largest = max(largest, distance)
        if largest >= 0:
            worst[t // window, largest] += 1
        if now + ids.shape[1] > ticks:
            used = np.argsort(last)[E - known:]
            tree[:] = 0
            for i in range(known):
                last[used[i]] = i + 1
                _mark(tree, i + 1, 1)
            now = known
        for k in range(ids.shape[1]):
            if ids[t, k] >= 0:
                now += 1
                if last[ids[t, k]]:
                    _mark(tree, last[ids[t, k]], -1)
                else:
                    known += 1
                last[ids[t, k]] = now
                _mark(tree, now, 1)


@jit(helper=True)
def _below(tree: np.ndarray, tick: int) -> int:
    """Marks at ``tick`` and before. Source: Fenwick, Software: Practice and Experience 24 (1994)."""
    total = 0
    while tick > 0:
        total += tree[tick]
        tick &= tick - 1
    return total


@jit(helper=True)
def _mark(tree: np.ndarray, tick: int, by: int) -> None:
    while tick < tree.size:
        tree[tick] += by
        tick += tick & -tick


@jit(helper=True)
def _distance(order: np.ndarray, expert: int) -> int:
    """How many other experts were used since this one, by ``order`` (E,); E if it was never used."""
    place = 0
    while place < order.size and order[place] >= 0 and order[place] != expert:
        place += 1
    return place if place < order.size and order[place] >= 0 else order.size


@jit(helper=True)
def _to_front(order: np.ndarray, expert: int) -> None:
    """``order`` holds experts, the most recent first, -1 behind the last that was ever used."""
    place = 0
    while order[place] >= 0 and order[place] != expert:
        place += 1
    for i in range(place, 0, -1):
        order[i] = order[i - 1]
    order[0] = expert


@jit
def _count(ids: np.ndarray, order: np.ndarray, counts: np.ndarray) -> int:
    """``order`` (E,) int32: experts, the most recent first, -1 behind the last that was ever used."""
    uses = 0
    for t in range(ids.shape[0]):
        for k in range(ids.shape[1]):           # all are looked up before any is touched
            if ids[t, k] >= 0:
                uses += 1
                distance = _distance(order, ids[t, k])
                if distance < order.size:
                    counts[distance] += 1
        for k in range(ids.shape[1]):
            if ids[t, k] >= 0:
                _to_front(order, ids[t, k])
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
