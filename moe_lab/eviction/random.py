"""A random expert leaves: the baseline that needs no memory."""

from __future__ import annotations

from moe_lab.eviction.base import EvictionPolicy
from moe_lab.kernels.layout import LAYER, SEED
from moe_lab.kernels.noise import noise


class Random(EvictionPolicy):
    """Any resident expert leaves, each with the same probability.

    keep is a hash of the run's seed, the layer, the tick and the expert: no state, and the same draw gives the same
    victim whenever it is repeated.
    """

    @staticmethod
    def keep(expert, stats, state, params, now):  # type: ignore[no-untyped-def]
        """A number in [0, 1) that belongs to this draw and expert."""
        return noise(int(state[SEED]), int(state[LAYER]), now, expert)
