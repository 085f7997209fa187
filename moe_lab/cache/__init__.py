"""Slots, budget and loading: the mechanism that keeps experts in memory. Knows no policy."""

from moe_lab.cache.budget import slots_for
from moe_lab.cache.experts import ExpertCache
from moe_lab.cache.held import Held
from moe_lab.cache.slots import LayerSlots

__all__ = ["ExpertCache", "Held", "LayerSlots", "slots_for"]
