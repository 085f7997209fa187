"""The ledger: what a pass did in every layer, entered into the record of all tokens by one call.

Knows how the arrays of ``record`` are counted and filled. Knows no thread and no clock: ``engine.telemetry`` keeps
readers and writer apart. A dozen small NumPy calls a layer would cost more than all walks of a token, and so would
the conversion of forty arrays: their addresses are written down once (see ``kernels.pointers``).
The slow twin is ``ledger_slow``.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from moe_lab.kernels.jit import jit
from moe_lab.kernels.layer import FIELDS, opened
from moe_lab.kernels.pointers import array_at
from moe_lab.kernels.record import OTHER, WHOLE, Log, Ring, Spent, Totals
from moe_lab.kernels.walked import Walked

WORDS = len(FIELDS)
"""Numbers in the block of a layer."""


RING = 5
TOTALS = RING + len(Ring._fields)
LAYERS = TOTALS + len(Totals._fields)
"""Places in a book: after five sizes the addresses of the ring's arrays, of the totals', and of the layers' blocks."""


def book_of(ring: Ring, totals: Totals, layers: Iterable[np.ndarray]) -> np.ndarray:
    """Where the record stands, for :func:`enter`: sizes, then addresses. ``layers`` are the blocks of the layers.

    Whoever has it keeps the arrays alive.
    """
    (N, L, K), (M, _, E) = ring.ids.shape, ring.logits.shape
    return np.array([N, M, L, E, K, *_addresses(*ring, *totals, *layers)], dtype=np.int64)


def page_of(routes: Walked, spent: Spent) -> np.ndarray:
    """Where a pass stands that did ``routes`` (L, T, K), mass (L, T), for :func:`enter`."""
    return np.array([routes.ids.shape[1], *_addresses(*routes, *spent)], dtype=np.int64)


def rows_of(log: Log) -> np.ndarray:
    """Where the tokens of a run are logged, for :func:`enter`."""
    return np.array([len(log.phase), *_addresses(*log)], dtype=np.int64)


def _addresses(*arrays: np.ndarray) -> list[int]:
    assert all(array.flags.c_contiguous for array in arrays)
    return [array.ctypes.data for array in arrays]


@jit
def enter(book: np.ndarray, page: np.ndarray, rows: np.ndarray, token: int, row: int, phase: int,
          total_s: float) -> tuple[int, int, int, int, int, int, float, float, float, float, float]:
    """Enter a pass of T tokens, which took ``total_s`` seconds; returns its ``Counts``, as a plain tuple.

    The layers hold what their last token saw and who is resident now. ``token`` tokens are in ring and totals before
    this pass, ``row`` in the log, which has room for T more.
    """
    ring, totals, (routes, spent), log = _ring(book), _totals(book), _page(book, page), _log(book, rows)
    T, N, hits, misses, swapped, mass = page[0], book[0], 0, 0, 0, 0.0
    read_bytes, wait_s, route_s, experts_s = 0, 0.0, 0.0, 0.0
    for layer in range(book[2]):
        for t in range(T):
            hit, miss, swap = _count(totals, log, routes, layer, t, token + t, row + t)
            hits, misses, swapped, mass = hits + hit, misses + miss, swapped + swap, mass + routes.mass[layer, t]
            if t >= T - N:
                _to_ring(ring, routes, layer, t, (token + t) % N)
        read_bytes, wait_s = read_bytes + spent.read_bytes[layer], wait_s + spent.wait_s[layer]
        route_s, experts_s = route_s + spent.route_s[layer], experts_s + spent.experts_s[layer]
        _end_of_pass(ring, totals, spent, book[LAYERS + layer], layer, token + T - 1)
    for t in range(T):
        log.phase[row + t] = phase
        ring.phase[(token + t) % N], ring.total_s[(token + t) % N] = phase, total_s / T
    whole = (T, hits, misses, swapped, T * book[2], read_bytes)
    other = (mass, wait_s, route_s, experts_s, max(0.0, total_s - wait_s - route_s - experts_s))
    for i in range(len(whole)):
        log.whole[phase, i] += whole[i]
    for i in range(len(other)):
        log.other[phase, i] += other[i]
    return whole + other


@jit(cache=False)
def _count(totals: Totals, log: Log, routes: Walked, layer: int, t: int, token: int, row: int) -> tuple[int, int, int]:
    """One token of a layer into totals and log; its hits, misses and swapped uses."""
    ids, K, hits, misses, swapped = routes.ids[layer, t], routes.ids.shape[2], 0, 0, 0
    for k in range(K):
        e = ids[k]
        log.ids[row, layer, k], log.gates[row, layer, k] = e, routes.gates[layer, t, k]
        if e < 0:
            continue
        hit = routes.hits[layer, t, k]
        totals.experts[layer, e, 0] += 1
        totals.experts[layer, e, 1] += hit
        totals.experts[layer, e, 2] = token
        hits, misses, swapped = hits + hit, misses + 1 - hit, swapped + (routes.rank[layer, t, k] >= K)
    return hits, misses, swapped


@jit(cache=False)
def _to_ring(ring: Ring, routes: Walked, layer: int, t: int, at: int) -> None:
    """One token of a layer into row ``at``; nothing spent."""
    for k in range(routes.ids.shape[2]):
        ring.ids[at, layer, k], ring.hits[at, layer, k] = routes.ids[layer, t, k], routes.hits[layer, t, k]
        ring.rank[at, layer, k], ring.evicted[at, layer, k] = routes.rank[layer, t, k], routes.evicted[layer, t, k]
    ring.read_bytes[at, layer] = 0
    ring.wait_s[at, layer] = ring.route_s[at, layer] = ring.experts_s[at, layer] = 0.0


@jit(cache=False)
def _end_of_pass(ring: Ring, totals: Totals, spent: Spent, block: int, layer: int, last: int) -> None:
    """What the last token of a layer saw, who is resident after it, and what the pass spent."""
    at, detail = last % ring.ids.shape[0], last % ring.logits.shape[0]
    ring.read_bytes[at, layer], ring.wait_s[at, layer] = spent.read_bytes[layer], spent.wait_s[layer]
    ring.route_s[at, layer], ring.experts_s[at, layer] = spent.route_s[layer], spent.experts_s[layer]
    here = opened(array_at(block, (WORDS,), np.int64))
    for e in range(here.logits.size):
        ring.logits[detail, layer, e], ring.resident[detail, layer, e] = here.logits[e], here.before[e]
        totals.scores[layer, e], totals.resident[layer, e] = here.scores[e], here.resident[e]


@jit(cache=False)
def _ring(book: np.ndarray) -> Ring:
    N, M, L, E, K, at = book[0], book[1], book[2], book[3], book[4], book[RING:TOTALS]
    return Ring(
        array_at(at[0], (N, L, K), np.int32), array_at(at[1], (N, L, K), np.bool_),
        array_at(at[2], (N, L, K), np.int16), array_at(at[3], (N, L, K), np.int32),
        array_at(at[4], (N, L), np.int64), array_at(at[5], (N, L), np.float64),
        array_at(at[6], (N, L), np.float64), array_at(at[7], (N, L), np.float64),
        array_at(at[8], (N,), np.float64), array_at(at[9], (N,), np.uint8),
        array_at(at[10], (M, L, E), np.float32), array_at(at[11], (M, L, E), np.bool_),
    )


@jit(cache=False)
def _totals(book: np.ndarray) -> Totals:
    L, E, at = book[2], book[3], book[TOTALS:LAYERS]
    return Totals(array_at(at[0], (L, E, 3), np.int64), array_at(at[1], (L, E), np.bool_),
                  array_at(at[2], (L, E), np.float32))


@jit(cache=False)
def _page(book: np.ndarray, page: np.ndarray) -> tuple[Walked, Spent]:
    L, T, shape, at = book[2], page[0], (book[2], page[0], book[4]), page[1:]
    routes = Walked(
        array_at(at[0], shape, np.int32), array_at(at[1], shape, np.float32),
        array_at(at[2], shape, np.bool_), array_at(at[3], shape, np.int32),
        array_at(at[4], shape, np.int16), array_at(at[5], (L, T), np.float32),
    )
    return routes, Spent(
        array_at(at[6], (L,), np.int64), array_at(at[7], (L,), np.float64),
        array_at(at[8], (L,), np.float64), array_at(at[9], (L,), np.float64),
    )


@jit(cache=False)
def _log(book: np.ndarray, rows: np.ndarray) -> Log:
    N, L, K = rows[0], book[2], book[4]
    return Log(
        array_at(rows[1], (N, L, K), np.int32), array_at(rows[2], (N, L, K), np.float32),
        array_at(rows[3], (N,), np.uint8), array_at(rows[4], (2, WHOLE), np.int64),
        array_at(rows[5], (2, OTHER), np.float64),
    )
