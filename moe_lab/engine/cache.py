"""The cache as a knob: how large it is, who is in it, and how to change both while the engine runs.

Knows wishes and budgets. The slots themselves stand in ``moe_lab.cache``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_lab.cache import slots_for
from moe_lab.engine.passes import change_residents
from moe_lab.units import format_bytes

if TYPE_CHECKING:
    from moe_lab.engine.engine import Engine


class Cache:
    """The cache as a user holds it: its size, its residents, and how to change them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def slots(self) -> int:
        """Slots a layer."""
        return self._engine._experts.slots

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self._engine._experts.nbytes

    @property
    def resident(self) -> np.ndarray:
        """(L, E) bool: who is resident now (a copy)."""
        return np.stack([state.resident for state in self._engine._experts.states]).astype(bool)

    def resize(self, budget: int | str) -> None:
        """Set the budget: slots a layer (``16``), ``"25%"`` of the experts, or bytes (``"6 GiB"``).

        Takes effect at the next token. Where it shrinks, the experts least worth keeping leave.
        Raises ``BudgetError`` under the floor.
        """
        engine = self._engine
        slots = slots_for(budget, engine.spec, engine.format.name)
        engine._owner.wish("cache", lambda: change_residents(engine, lambda: engine._experts.resize(slots)))

    def reset(self) -> None:
        """Empty the cache at the next token; what routing policies have learned stays."""
        engine = self._engine
        engine._owner.wish("reset", lambda: change_residents(engine, engine._experts.reset))

    def __repr__(self) -> str:
        spec = self._engine.spec
        return (f"{self.slots} of {spec.experts} experts in each of {spec.L} layers, {format_bytes(self.nbytes)}; "
                f"{int(self.resident.sum())} resident now")
