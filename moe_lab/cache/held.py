"""Experts kept in memory beside the slots, so that scores over many windows read each of them once.

Knows bytes read for a pass of many tokens. Steers nothing: what is resident is decided elsewhere, and a
slowed disk does not slow a score.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from moe_lab.store import Readers


class Traffic:
    """Bytes and seconds that loading cost, added up by the caller."""

    __slots__ = ("read_bytes", "wait_s")

    def __init__(self) -> None:
        self.read_bytes = 0
        self.wait_s = 0.0


class Held:
    """At most ``limit`` bytes of experts, first come first kept; the others are read again each time."""

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes = limit, 0
        self._kept: dict[tuple[int, int], np.ndarray] = {}

    def serve(self, layer: int, wanted: Sequence[tuple[int, np.ndarray]], readers: Readers,
              traffic: Traffic) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (expert, its bytes) for ``wanted`` (expert, scratch slot); those not kept are read together."""
        missing = [(expert, slot) for expert, slot in wanted if (layer, expert) not in self._kept]
        if missing:
            size, wait = readers.load(layer, missing, paced=False)
            traffic.read_bytes += size
            traffic.wait_s += wait
        for expert, slot in wanted:
            kept = self._kept.get((layer, expert))
            if kept is None and self.nbytes + slot.nbytes <= self.limit:
                kept = self._kept[layer, expert] = slot.copy()
                self.nbytes += kept.nbytes
            yield expert, slot if kept is None else kept
