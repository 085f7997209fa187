"""The memory of slots: private, on huge pages where the system has them, given back at once."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from moe_lab.cache import LayerSlots
from moe_lab.errors import BudgetError

SMAPS = Path("/proc/self/smaps")
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def mapping(address: int) -> str:
    """What the kernel says of the mapping that holds ``address``."""
    parts = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text(), flags=re.MULTILINE)
    for part in parts[1:]:
        first, last = (int(x, 16) for x in part.split()[0].split("-"))
        if first <= address < last:
            return part
    raise AssertionError(f"no mapping holds {address:x}")


@pytest.mark.skipif(not SMAPS.exists(), reason="the system tells nothing of its mappings")
def test_slots_lie_in_private_memory_that_asks_for_huge_pages():
    slots = LayerSlots(8, 4, 1 << 20)
    here = mapping(slots.arena.ctypes.data)
    assert re.match(r"\S+ rw-p ", here) and "hg" in re.search(r"VmFlags:(.*)", here).group(1).split()


@pytest.mark.skipif(not HUGE.exists() or "[never]" in HUGE.read_text(), reason="the system has no huge pages")
def test_filled_slots_lie_on_huge_pages():
    slots = LayerSlots(8, 8, 2 << 20)
    slots.arena[:] = 1
    huge = int(re.search(r"AnonHugePages: +(\d+) kB", mapping(slots.arena.ctypes.data)).group(1))
    assert huge >= 8 << 10 and slots.arena.ctypes.data % (2 << 20) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_child_writes_into_slots_of_its_own():
    slots = LayerSlots(8, 2, 4096)
    slots.arena[:] = 1
    child = os.fork()
    if not child:
        slots.arena[:] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert (slots.arena == 1).all()


def test_experts_move_with_their_bytes_and_the_old_memory_is_given_back():
    old, new = LayerSlots(8, 4, 64), LayerSlots(8, 6, 64)
    for expert in (5, 2):
        slot = old.reserve()
        old.arena[slot] = expert
        old.fill(expert, slot)
    old.move_into(new)
    assert [int(new.arena[new.slot_of[e]][0]) for e in (5, 2)] == [5, 2] and len(new.free) == 4
    assert (old.slot_of == -1).all() and not old.free and old.arena.size == 0


def test_memory_that_the_system_does_not_give_is_a_budget_error():
    with pytest.raises(BudgetError, match="take a smaller cache"):
        LayerSlots(8, 1 << 40, 1 << 20)


def test_empty_slots_are_listed_anew_from_the_map():
    slots = LayerSlots(4, 3, 64)
    taken = slots.reserve()
    slots.fill(1, taken)
    slots.reserve()                 # and lost
    slots.recount()
    assert sorted([*slots.free, taken]) == [0, 1, 2]
