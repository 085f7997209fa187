"""The cache of a whole model: what the walk decided, made true in memory.

Owns the slots of every layer and the logical residency (``LayerState``) beside them; asks the readers
for bytes. Whatever fails on the way, one thing holds afterwards: an expert is resident exactly when a
slot holds its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from moe_lab.cache.held import Held, Traffic
from moe_lab.cache.slots import LayerSlots
from moe_lab.errors import ReadError
from moe_lab.interrupts import uninterrupted
from moe_lab.kernels.places import find_places
from moe_lab.kernels.residency import LayerState
from moe_lab.store import Readers

T = TypeVar("T")

GROUP = 8
"""Experts read together in a pass of many tokens, and slots of scratch memory."""


class ExpertCache:
    """Slots and residency of ``L`` layers.

    ``slots`` is the budget of one layer. ``states`` may be exchanged for others (a score brings its own);
    the slots stay.
    """

    def __init__(self, states: list[LayerState], slots: int, slot_bytes: int, experts: int, readers: Readers) -> None:
        self.states = states
        self.slots = slots
        self.slot_bytes = slot_bytes
        self.layers = [LayerSlots(experts, slots, slot_bytes) for _ in states]
        self.readers = readers
        self.held: Held | None = None
        """Where experts that only pass through are kept meanwhile, if anywhere."""
        self._scratch = LayerSlots(experts, GROUP, slot_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all slots, filled or not."""
        return len(self.layers) * self.slots * self.slot_bytes

    def fetch(self, layer: int, ids: np.ndarray, evicted: np.ndarray, slots: np.ndarray, traffic: Traffic) -> None:
        """Load those of one token's experts ``ids`` (K,) that have no place in ``slots`` (K,) int32, and fill it up.

        ``evicted`` (K,) are the experts that the walk dropped for them. If a read fails, none of the
        experts that were on their way is resident.
        """
        here = self.layers[layer]
        missing = np.nonzero((slots < 0) & (ids >= 0))[0]
        for expert in evicted[evicted >= 0]:
            here.release(int(expert))
        self._load(layer, [int(e) for e in ids[missing]], here, self.states[layer], traffic)
        find_places(here.slot_of, ids, slots)

    def _load(self, layer: int, experts: list[int], here: LayerSlots, state: LayerState, traffic: Traffic,
              paced: bool = True) -> None:
        """Read ``experts`` into free slots; on any failure those not read leave the residency again."""
        taken = {expert: here.reserve() for expert in experts}
        lost = set(experts)
        try:
            size, wait = self.readers.load(layer, [(e, here.arena[slot]) for e, slot in taken.items()], paced)
            traffic.read_bytes += size
            traffic.wait_s += wait
            lost.clear()
        except ReadError as error:
            lost &= set(error.experts)
            raise
        finally:
            for expert, slot in taken.items():
                if expert in lost:
                    here.give_back(slot)
                    state.drop(expert)
                else:
                    here.fill(expert, slot)

    def visit(self, layer: int, used: np.ndarray, traffic: Traffic, settle: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (expert, slot bytes) once for each of ``used``, loading those that are not here.

        For a pass of many tokens, which may use more experts than there are slots: first those that lie
        in slots already, then, in groups, the others: into the slots that the walk has emptied if the walk
        left them resident, else into scratch. With ``settle=False`` the slots stay as they are.
        """
        here, state = self.layers[layer], self.states[layer]
        present = here.slot_of[used] >= 0
        for expert in used[present]:
            yield int(expert), here.arena[here.slot_of[expert]]
        absent = used[~present]
        staying = state.resident[absent] if settle else np.zeros(absent.size, dtype=bool)
        if settle:
            here.release_all_but(state.resident)
        for start in range(0, absent.size, GROUP):
            group, stay = absent[start : start + GROUP], staying[start : start + GROUP]
            if stay.any():
                self._load(layer, [int(e) for e in group[stay]], here, state, traffic)
                for expert in group[stay]:
                    yield int(expert), here.arena[here.slot_of[expert]]
            passing = [(int(e), self._scratch.arena[i]) for i, e in enumerate(group[~stay])]
            if passing and self.held is not None:
                yield from self.held.serve(layer, passing, self.readers, traffic)
            elif passing:
                size, wait = self.readers.load(layer, passing, paced=settle)
                traffic.read_bytes += size
                traffic.wait_s += wait
                yield from passing

    def preload(self) -> Iterator[int]:
        """Load every expert of a cache that has a slot for each, not slowed; yields the experts loaded so far."""
        for layer, (here, state) in enumerate(zip(self.layers, self.states, strict=True)):
            for start in range(0, here.slot_of.size, GROUP):
                group = list(range(start, min(start + GROUP, here.slot_of.size)))
                state.fill(group)
                self._load(layer, group, here, state, Traffic(), paced=False)
                yield len(group)

    def resize(self, slots: int) -> None:
        """Change the budget of every layer; where it shrinks, the least worth keeping leaves.

        All of it or nothing: ``BudgetError`` where memory is lacking, ``PolicyError`` from a policy that fails.
        """
        experts = self.layers[0].slot_of.size
        empty = [LayerSlots(experts, slots, self.slot_bytes) for _ in self.layers]       # asked for, not yet touched
        states, gone = self._changed(lambda state: state.resize(slots))
        with uninterrupted():
            for here, larger, left in zip(self.layers, empty, gone, strict=True):
                for expert in left:
                    here.release(expert)
                here.move_into(larger)              # layer by layer, so that no more than one layer lies here twice
            self._adopt(states)
            self.layers = empty         # another list: whoever knows the old one sees that it is
            self.slots = slots

    def change(self, change: Callable[[LayerState], object]) -> None:
        """Make ``change`` of every layer's state, of all of them or of none; residents stay."""
        states, _ = self._changed(change)
        with uninterrupted():
            self._adopt(states)

    def reset(self) -> None:
        """Empty every slot; what routing policies have learned stays."""
        states, _ = self._changed(lambda state: state.reset())
        with uninterrupted():
            self._adopt(states)
            self.reconcile()

    def _changed(self, change: Callable[[LayerState], T]) -> tuple[list[LayerState], list[T]]:
        """Copies of the states with ``change`` made to each, and what it returned."""
        states = [state.copy() for state in self.states]
        return states, [change(state) for state in states]

    def _adopt(self, states: list[LayerState]) -> None:
        for state, changed in zip(self.states, states, strict=True):
            state.become(changed)

    def close(self) -> None:
        """Give back slots, threads and files at once; nobody is resident any more."""
        self.readers.close()
        for here in (*self.layers, self._scratch):
            here.discard()
        for state in self.states:
            state.resident[:] = False
        self.held = None

    def reconcile(self) -> None:
        """Make map and residency agree again after a pass that was cut off, wherever that was."""
        for layer in range(len(self.layers)):
            self.reconcile_layer(layer)

    def reconcile_layer(self, layer: int) -> None:
        """The same for one layer, after a pass whose walk and whose reads were not of the same experts."""
        here, state = self.layers[layer], self.states[layer]
        for expert in np.nonzero(state.resident & (here.slot_of < 0))[0]:
            state.drop(int(expert))
        here.release_all_but(state.resident)
        here.recount()
