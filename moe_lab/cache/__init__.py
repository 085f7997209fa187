"""Slots, budget and loading: the mechanism that keeps experts in memory. Knows no policy."""

from moe_lab.cache.budget import beside_slots, check_memory, slots_for
from moe_lab.cache.experts import GROUP, ExpertCache
from moe_lab.cache.held import Held
from moe_lab.cache.memory import Free, free_memory
from moe_lab.cache.slots import LayerSlots

__all__ = ["GROUP", "ExpertCache", "Free", "Held", "LayerSlots", "beside_slots", "check_memory", "free_memory",
           "slots_for"]
