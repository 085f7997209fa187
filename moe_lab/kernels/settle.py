"""One token's experts settled: who hits, who must leave, who comes.

Knows residency and the eviction functions; the ids may come from a ranking or from a trace.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.jit import jit
from moe_lab.kernels.layer import LEFT, SLOTS, TOUCH, WEAKEST, Layer
from moe_lab.kernels.pointers import left_at, touch_at, weakest_at


@jit(helper=True)
def find_victim(block: np.ndarray, layer: Layer, now: int) -> int:
    """The unprotected resident that leaves next, see ``plugin.finder``."""
    return weakest_at(block[WEAKEST])(layer.resident, layer.marks, layer.keys, layer.stats, layer.eviction_state,
                                      layer.eviction_params, now)


@jit(helper=True)
def settle(block: np.ndarray, layer: Layer, held: int, ids: np.ndarray, gates: np.ndarray, hits: np.ndarray,
           evicted: np.ndarray) -> int:
    """Use the experts ``ids`` (K,), -1 for none, in this order, with weights ``gates``; fill ``hits``, ``evicted``.

    ``held`` experts are resident before; returns how many are after, or -1 for a NaN keep (see ``report``). Hits are
    judged for all of them first; they protect each other.
    """
    resident, stats, marks = layer.resident, layer.stats, layer.marks
    marks[-1] += 1
    mark = marks[-1]
    for k in range(ids.size):
        e = ids[k]
        evicted[k] = -1
        hits[k] = e >= 0 and resident[e]
        if e >= 0:
            marks[e] = mark
    for k in range(ids.size):
        e = np.int64(ids[k])
        if e < 0:
            continue
        layer.clock[0] += 1
        now = layer.clock[0]
        if block[TOUCH]:
            weight = np.float64(gates[k])
            touch_at(block[TOUCH])(e, weight, hits[k], stats, layer.eviction_state, layer.eviction_params, now)
        if not resident[e]:
            if held >= block[SLOTS]:
                victim = find_victim(block, layer, now)
                if victim < 0:
                    layer.report[1] = -2 - victim
                    return -1
                resident[victim] = False
                held -= 1
                evicted[k] = victim
                if block[LEFT]:
                    left_at(block[LEFT])(victim, stats, layer.eviction_state, layer.eviction_params, now)
            resident[e] = True
            stats.arrived[e] = now
            held += 1
        stats.uses[e] += 1
        stats.last_use[e] = now
    return held
