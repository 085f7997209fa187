"""The slots of one layer: memory, and which expert lies where.

Knows bytes and places. Which experts *ought* to be resident is decided by the walk; this only keeps
the map true: an expert has a place here exactly when its bytes are there.
"""

from __future__ import annotations

import mmap

import numpy as np

_HUGE = 2 << 20


def _arena(slots: int, slot_bytes: int) -> np.ndarray:
    """(slots, slot_bytes) uint8 of untouched anonymous memory, on huge pages where the system has them."""
    memory = mmap.mmap(-1, max(1, slots * slot_bytes) + _HUGE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, dtype=np.uint8)
    start = -whole.ctypes.data % _HUGE
    return whole[start : start + slots * slot_bytes].reshape(slots, slot_bytes)


class LayerSlots:
    """``arena`` (S, slot_bytes) uint8 and the map between experts and slots.

    ``slot_of`` (E,) int32 is the slot of an expert or -1; ``free`` lists the empty slots.
    """

    def __init__(self, experts: int, slots: int, slot_bytes: int) -> None:
        self.arena = _arena(slots, slot_bytes)
        self.slot_of = np.full(experts, -1, dtype=np.int32)
        self.free = list(range(slots - 1, -1, -1))

    def reserve(self) -> int:
        """An empty slot, taken from the free ones."""
        return self.free.pop()

    def fill(self, expert: int, slot: int) -> None:
        """Say that ``slot`` now holds the bytes of ``expert``."""
        self.slot_of[expert] = slot

    def release(self, expert: int) -> None:
        """The expert leaves; its slot is free. Nothing happens where it has none."""
        slot = int(self.slot_of[expert])
        if slot >= 0:
            self.slot_of[expert] = -1
            self.free.append(slot)

    def give_back(self, slot: int) -> None:
        """A reserved slot that was not filled is free again."""
        self.free.append(slot)

    def release_all_but(self, resident: np.ndarray) -> None:
        """Free the slots of all experts outside ``resident`` (E,) bool."""
        for expert in np.nonzero((self.slot_of >= 0) & ~resident)[0]:
            self.release(int(expert))

    def resized(self, slots: int) -> LayerSlots:
        """A copy with another number of slots; the experts here must fit into it."""
        other = LayerSlots(self.slot_of.size, slots, self.arena.shape[1])
        for expert in np.nonzero(self.slot_of >= 0)[0]:
            slot = other.reserve()
            other.arena[slot] = self.arena[self.slot_of[expert]]
            other.fill(int(expert), slot)
        return other
