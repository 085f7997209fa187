"""The cache as a knob: how large it is, who is in it, and how to change both while the engine runs.

Knows wishes and budgets. The slots themselves stand in ``moe_lab.cache``.
"""

from __future__ import annotations

import numpy as np

from moe_lab.cache import check_memory, slots_for
from moe_lab.engine.core import Core
from moe_lab.units import format_bytes


class Cache:
    """The cache as a user holds it: its size, its residents, and how to change them."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @property
    def slots(self) -> int:
        """Slots a layer."""
        return self._core.experts.slots

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self._core.experts.nbytes

    @property
    def resident(self) -> np.ndarray:
        """(L, E) bool: who is resident now (a copy)."""
        return np.stack([state.resident for state in self._core.experts.states]).astype(bool)

    def resize(self, budget: int | str) -> None:
        """Set the budget: slots a layer (``16``), ``"25%"`` of the experts, or bytes (``"6 GiB"``).

        Takes effect at the next token. Where it shrinks, the experts least worth keeping leave.
        Raises ``BudgetError`` under the floor or beyond memory; the cache then is as before.
        """
        core = self._core
        slots = slots_for(budget, core.spec, core.format.name)
        check_memory(slots, core.spec, core.format.name, 0, core.experts.nbytes)
        core.change("cache", slots, lambda: core.experts.slots, lambda: core.resize(slots))

    def reset(self) -> None:
        """Empty the cache at the next token; what routing policies have learned stays."""
        self._core.change("reset", None, lambda: None, self._core.reset)

    def __repr__(self) -> str:
        spec = self._core.spec
        return (f"{self.slots} of {spec.experts} experts in each of {spec.L} layers, {format_bytes(self.nbytes)}; "
                f"{int(self.resident.sum())} resident now")
