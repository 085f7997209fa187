"""The slow twin of ``ledger.enter``, in plain NumPy: the same record, to read and to test against."""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.record import WHOLE, Counts, Log, Ring, Spent, Totals
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walked import Walked


def enter_slow(ring: Ring, totals: Totals, log: Log, routes: Walked, spent: Spent, states: list[LayerState],
               token: int, row: int, phase: int, total_s: float) -> Counts:
    """As :func:`moe_lab.kernels.ledger.enter`, with the layers themselves in place of their addresses."""
    T, K = routes.ids.shape[1:]
    log.ids[row : row + T], log.gates[row : row + T] = (a.transpose(1, 0, 2) for a in (routes.ids, routes.gates))
    log.phase[row : row + T] = phase
    kept = np.arange(max(0, T - ring.capacity), T)
    rows, last = (token + kept) % ring.capacity, token + T - 1
    for name in ("ids", "hits", "rank", "evicted"):
        getattr(ring, name)[rows] = getattr(routes, name)[:, kept].transpose(1, 0, 2)
    for name in Spent._fields:
        getattr(ring, name)[rows] = 0
        getattr(ring, name)[last % ring.capacity] = getattr(spent, name)
    ring.phase[rows], ring.total_s[rows] = phase, total_s / T
    for layer, state in enumerate(states):
        detail = last % len(ring.logits)
        ring.logits[detail, layer], ring.resident[detail, layer] = state.logits, state.before
        totals.scores[layer], totals.resident[layer] = state.scores, state.resident
    chosen = routes.ids >= 0
    layers, tokens, places = np.nonzero(chosen)
    at = layers, routes.ids[chosen]
    np.add.at(totals.uses, at, 1)
    np.add.at(totals.hits, at, routes.hits[chosen])
    np.maximum.at(totals.last_use, at, token + tokens)
    hits = int(np.count_nonzero(routes.hits & chosen))
    swapped = int(np.count_nonzero((routes.rank >= K) & chosen))
    wait_s, route_s, experts_s = (float(each.sum()) for each in (spent.wait_s, spent.route_s, spent.experts_s))
    counts = Counts(T, hits, places.size - hits, swapped, T * len(states), int(spent.read_bytes.sum()),
                    float(routes.mass.sum(dtype=np.float64)), wait_s, route_s, experts_s,
                    max(0.0, total_s - wait_s - route_s - experts_s))
    log.whole[phase] += np.array(counts[:WHOLE])
    log.other[phase] += np.array(counts[WHOLE:])
    return counts
