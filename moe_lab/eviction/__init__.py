"""Eviction policies: which resident expert leaves when room is needed. One a file; the table ``EVICTION`` names them.

Knows neither bytes nor slots. See :class:`EvictionPolicy` for the contract, :func:`policy` to make one from a
function, ``moe_lab.testing.check_policy`` to try it. A policy with two queues, for instance: who was used once waits in
the order of arrival, who was used again stays behind them in the order of use.

>>> def used(expert, weight, hit, stats, state, params, now):
...     stats.own[0, expert] = now if hit else 0.0
>>> @policy(touch=used, columns=1)
... def two_queues(expert, stats, state, params, now):
...     if stats.own[0, expert] > 0.0:
...         return now + stats.own[0, expert]
...     return float(stats.arrived[expert])
>>> two_queues()
two_queues()
"""

from __future__ import annotations

from typing import Literal

from moe_lab.eviction.aged_lfu import AgedLFU
from moe_lab.eviction.arc import ARC
from moe_lab.eviction.base import EvictionPolicy, policy
from moe_lab.eviction.clock import Clock
from moe_lab.eviction.fifo import FIFO
from moe_lab.eviction.learned import LearnedEviction
from moe_lab.eviction.least_stale import LeastStale
from moe_lab.eviction.lfru import LFRU
from moe_lab.eviction.lfu import LFU
from moe_lab.eviction.lru import LRU
from moe_lab.eviction.mrs import MRS
from moe_lab.eviction.random import Random
from moe_lab.eviction.s3_fifo import S3FIFO
from moe_lab.eviction.slru import SLRU
from moe_lab.kernels.layout import EXPERTS, LAYER, OWN, SEED, SLOTS, TOKEN, TOP_K, Stats
from moe_lab.kernels.noise import noise
from moe_lab.parameters import Schedule, Table

EvictionName = Literal["lru", "fifo", "lfu", "aged-lfu", "random", "clock", "lfru", "slru", "s3-fifo", "arc", "mrs",
                       "least-stale", "learned"]

EVICTION: dict[str, type[EvictionPolicy]] = {
    "lru": LRU,
    "fifo": FIFO,
    "lfu": LFU,
    "aged-lfu": AgedLFU,
    "random": Random,
    "clock": Clock,
    "lfru": LFRU,
    "slru": SLRU,
    "s3-fifo": S3FIFO,
    "arc": ARC,
    "mrs": MRS,
    "least-stale": LeastStale,
    "learned": LearnedEviction,
}

__all__ = ["ARC", "EVICTION", "EXPERTS", "FIFO", "LAYER", "LFRU", "LFU", "LRU", "MRS", "OWN", "S3FIFO", "SEED", "SLOTS",
           "SLRU", "TOKEN", "TOP_K", "AgedLFU", "Clock", "EvictionName", "EvictionPolicy", "LearnedEviction",
           "LeastStale", "Random", "Schedule", "Stats", "Table", "noise", "policy"]
