"""Eviction policies: which resident expert leaves when room is needed. One a file; the table ``EVICTION`` names them.

Knows neither bytes nor slots. See :class:`EvictionPolicy` for the contract, :func:`policy` to make one from a
function.
"""

from __future__ import annotations

from typing import Literal

from moe_lab.eviction.aged_lfu import AgedLFU
from moe_lab.eviction.base import EvictionPolicy, policy
from moe_lab.eviction.fifo import FIFO
from moe_lab.eviction.lfu import LFU
from moe_lab.eviction.lru import LRU
from moe_lab.eviction.random import Random
from moe_lab.kernels.layout import EXPERTS, LAYER, OWN, SEED, SLOTS, TOKEN, TOP_K, Stats
from moe_lab.kernels.noise import noise

EvictionName = Literal["lru", "fifo", "lfu", "aged-lfu", "random"]

EVICTION: dict[str, type[EvictionPolicy]] = {
    "lru": LRU,
    "fifo": FIFO,
    "lfu": LFU,
    "aged-lfu": AgedLFU,
    "random": Random,
}

__all__ = ["EVICTION", "EXPERTS", "FIFO", "LAYER", "LFU", "LRU", "OWN", "SEED", "SLOTS", "TOKEN", "TOP_K", "AgedLFU",
           "EvictionName", "EvictionPolicy", "Random", "Stats", "noise", "policy"]
