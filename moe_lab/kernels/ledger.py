"""The ledger: what a pass did in every layer, entered into the record of all tokens by one call.

Knows the arrays of the record and how they are counted. Knows no thread and no clock: ``engine.telemetry`` keeps
readers and writer apart. A dozen small NumPy calls a layer would cost more than all walks of a token, and so would
the conversion of forty arrays: their addresses are written down once (see ``kernels.pointers``).
The slow twin is ``ledger_slow``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

import numba
import numpy as np

from moe_lab.kernels.jit import jit
from moe_lab.kernels.layer import FIELDS, opened
from moe_lab.kernels.pointers import pointer
from moe_lab.kernels.walk import Walked

WORDS = len(FIELDS)
"""Numbers in the block of a layer."""


class Ring(NamedTuple):
    """The last N tokens, one row a token, written in a circle; bytes and seconds of a pass stand at its last token."""

    ids: np.ndarray
    """(N, L, K) int32, as the next three in falling gate weight; -1 where fewer than K were used."""
    hits: np.ndarray
    """(N, L, K) bool."""
    rank: np.ndarray
    """(N, L, K) int16."""
    evicted: np.ndarray
    """(N, L, K) int32."""
    read_bytes: np.ndarray
    """(N, L) int64."""
    wait_s: np.ndarray
    """(N, L) float64, as the next two."""
    route_s: np.ndarray
    experts_s: np.ndarray
    total_s: np.ndarray
    """(N,) float64: seconds of the whole pass over its tokens."""
    phase: np.ndarray
    """(N,) uint8."""
    logits: np.ndarray
    """(M, L, E) float32 of the last token of a pass, M <= N."""
    resident: np.ndarray
    """(M, L, E) bool: before that token."""

    @property
    def capacity(self) -> int:
        """Tokens it holds: N."""
        return len(self.ids)

    @classmethod
    def empty(cls, N: int, M: int, L: int, E: int, K: int) -> Self:
        """A ring of no token yet."""
        return cls(np.full((N, L, K), -1, np.int32), np.zeros((N, L, K), np.bool_), np.zeros((N, L, K), np.int16),
                   np.full((N, L, K), -1, np.int32), np.zeros((N, L), np.int64), np.zeros((N, L)), np.zeros((N, L)),
                   np.zeros((N, L)), np.zeros(N), np.zeros(N, np.uint8), np.zeros((M, L, E), np.float32),
                   np.zeros((M, L, E), np.bool_))


class Totals(NamedTuple):
    """What is known of every expert, (L, E)."""

    uses: np.ndarray
    """int64, since the start."""
    hits: np.ndarray
    """int64."""
    last_use: np.ndarray
    """int64: token of the last use, -1 for never."""
    resident: np.ndarray
    """bool, after the last token."""
    scores: np.ndarray
    """float32: what the routing policy gave for the last token."""

    @classmethod
    def empty(cls, L: int, E: int) -> Self:
        """Of no token yet."""
        return cls(np.zeros((L, E), np.int64), np.zeros((L, E), np.int64), np.full((L, E), -1, np.int64),
                   np.zeros((L, E), np.bool_), np.zeros((L, E), np.float32))


class Log(NamedTuple):
    """All tokens of a run, one row a token."""

    ids: np.ndarray
    """(N, L, K) int32."""
    gates: np.ndarray
    """(N, L, K) float32."""
    phase: np.ndarray
    """(N,) uint8."""

    @classmethod
    def empty(cls, N: int, L: int, K: int) -> Self:
        """Room for N tokens."""
        return cls(np.empty((N, L, K), np.int32), np.empty((N, L, K), np.float32), np.empty(N, np.uint8))


class Spent(NamedTuple):
    """What a pass read and how long it took, (L,)."""

    read_bytes: np.ndarray
    """int64."""
    wait_s: np.ndarray
    """float64, as the next two."""
    route_s: np.ndarray
    experts_s: np.ndarray

    @classmethod
    def empty(cls, L: int) -> Self:
        """Nothing spent."""
        return cls(np.zeros(L, np.int64), np.zeros(L), np.zeros(L), np.zeros(L))


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
          total_s: float) -> tuple[int, int, int, float, int, float, float, float]:
    """Enter a pass of T tokens, which took ``total_s`` seconds.

    The layers hold what their last token saw and who is resident now. ``token`` tokens are in ring and totals before
    this pass, ``row`` in the log, which has room for T more.

    Returns:
        Hits, misses and swapped uses, the sum of the gate mass kept, bytes read, and seconds of waiting, routing and
        experts, over all layers and tokens.
    """
    ring, totals, (routes, spent), log = _ring(book), _totals(book), _page(book, page), _log(book, rows)
    T, N, hits, misses, swapped, mass = page[0], book[0], 0, 0, 0, 0.0
    for layer in range(book[2]):
        for t in range(T):
            hit, miss, swap = _count(totals, log, routes, layer, t, token + t, row + t)
            hits, misses, swapped, mass = hits + hit, misses + miss, swapped + swap, mass + routes.mass[layer, t]
            if t >= T - N:
                _to_ring(ring, routes, layer, t, (token + t) % N)
        _end_of_pass(ring, totals, spent, book[LAYERS + layer], layer, token + T - 1)
    for t in range(T):
        log.phase[row + t] = phase
        ring.phase[(token + t) % N], ring.total_s[(token + t) % N] = phase, total_s / T
    return (hits, misses, swapped, mass, np.sum(spent.read_bytes), np.sum(spent.wait_s), np.sum(spent.route_s),
            np.sum(spent.experts_s))


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
        totals.uses[layer, e] += 1
        totals.hits[layer, e] += hit
        totals.last_use[layer, e] = token
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
    here = opened(numba.carray(pointer(block), (WORDS,), np.int64))
    for e in range(here.logits.size):
        ring.logits[detail, layer, e], ring.resident[detail, layer, e] = here.logits[e], here.before[e]
        totals.scores[layer, e], totals.resident[layer, e] = here.scores[e], here.resident[e]


@jit(cache=False)
def _ring(book: np.ndarray) -> Ring:
    N, M, L, E, K, at = book[0], book[1], book[2], book[3], book[4], book[RING:TOTALS]
    return Ring(
        numba.carray(pointer(at[0]), (N, L, K), np.int32), numba.carray(pointer(at[1]), (N, L, K), np.bool_),
        numba.carray(pointer(at[2]), (N, L, K), np.int16), numba.carray(pointer(at[3]), (N, L, K), np.int32),
        numba.carray(pointer(at[4]), (N, L), np.int64), numba.carray(pointer(at[5]), (N, L), np.float64),
        numba.carray(pointer(at[6]), (N, L), np.float64), numba.carray(pointer(at[7]), (N, L), np.float64),
        numba.carray(pointer(at[8]), (N,), np.float64), numba.carray(pointer(at[9]), (N,), np.uint8),
        numba.carray(pointer(at[10]), (M, L, E), np.float32), numba.carray(pointer(at[11]), (M, L, E), np.bool_),
    )


@jit(cache=False)
def _totals(book: np.ndarray) -> Totals:
    shape, at = (book[2], book[3]), book[TOTALS:LAYERS]
    return Totals(
        numba.carray(pointer(at[0]), shape, np.int64), numba.carray(pointer(at[1]), shape, np.int64),
        numba.carray(pointer(at[2]), shape, np.int64), numba.carray(pointer(at[3]), shape, np.bool_),
        numba.carray(pointer(at[4]), shape, np.float32),
    )


@jit(cache=False)
def _page(book: np.ndarray, page: np.ndarray) -> tuple[Walked, Spent]:
    L, T, shape, at = book[2], page[0], (book[2], page[0], book[4]), page[1:]
    routes = Walked(
        numba.carray(pointer(at[0]), shape, np.int32), numba.carray(pointer(at[1]), shape, np.float32),
        numba.carray(pointer(at[2]), shape, np.bool_), numba.carray(pointer(at[3]), shape, np.int32),
        numba.carray(pointer(at[4]), shape, np.int16), numba.carray(pointer(at[5]), (L, T), np.float32),
    )
    return routes, Spent(
        numba.carray(pointer(at[6]), (L,), np.int64), numba.carray(pointer(at[7]), (L,), np.float64),
        numba.carray(pointer(at[8]), (L,), np.float64), numba.carray(pointer(at[9]), (L,), np.float64),
    )


@jit(cache=False)
def _log(book: np.ndarray, rows: np.ndarray) -> Log:
    N, L, K = rows[0], book[2], book[4]
    return Log(numba.carray(pointer(rows[1]), (N, L, K), np.int32),
               numba.carray(pointer(rows[2]), (N, L, K), np.float32), numba.carray(pointer(rows[3]), (N,), np.uint8))
