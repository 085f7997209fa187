"""The slots of one layer: memory, and which expert lies where.

Knows bytes and places. Which experts *ought* to be resident is decided by the walk; this only keeps
the map true: an expert has a place here exactly when its bytes are there.
"""

from __future__ import annotations

import mmap

import numpy as np

from moe_lab.errors import BudgetError
from moe_lab.units import format_bytes

_HUGE = 2 << 20
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Private: a shared mapping gets huge pages only where the system has them for shared memory, and a forked child
would write into its parent's slots."""


def _memory(size: int) -> mmap.mmap:
    """``size`` bytes and some, untouched, on huge pages where the system has them; ``BudgetError`` without room."""
    try:
        memory = mmap.mmap(-1, size + _HUGE, **_PRIVATE)
    except (OSError, OverflowError, ValueError) as error:
        raise BudgetError(f"the system gives no {format_bytes(size)} for a layer's slots ({error}); take a smaller "
                          "cache, such as cache='25%'") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class LayerSlots:
    """``arena`` (S, slot_bytes) uint8 and the map between experts and slots.

    ``slot_of`` (E,) int32 is the slot of an expert or -1; ``free`` lists the empty slots.
    Raises ``BudgetError`` where the system has no room for them.
    """

    def __init__(self, experts: int, slots: int, slot_bytes: int) -> None:
        self._memory = _memory(slots * slot_bytes)
        whole = np.frombuffer(self._memory, dtype=np.uint8)
        start = -whole.ctypes.data % _HUGE
        self.arena = whole[start : start + slots * slot_bytes].reshape(slots, slot_bytes)
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

    def recount(self) -> None:
        """List the empty slots anew: one that was reserved when a load was cut off is in neither place."""
        taken = set(self.slot_of[self.slot_of >= 0].tolist())
        self.free = [slot for slot in range(len(self.arena) - 1, -1, -1) if slot not in taken]

    def move_into(self, other: LayerSlots) -> None:
        """Bring all experts into the empty slots of ``other``, which must have enough, and give the memory back."""
        for expert in np.nonzero(self.slot_of >= 0)[0]:
            slot = other.reserve()
            other.arena[slot] = self.arena[self.slot_of[expert]]
            other.fill(int(expert), slot)
        self.discard()

    def discard(self) -> None:
        """Give the memory back at once, whoever still knows of it; nobody has a slot any more."""
        self.slot_of[:] = -1
        self.free = []
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)
        self.arena = self.arena[:0]
