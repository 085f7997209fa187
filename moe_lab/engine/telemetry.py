"""What happened, token by token and layer by layer, in arrays that are always on.

One writer (the thread that generates), any number of readers. A reader takes a ``Snapshot`` and never
holds the writer up (``seqlock``).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moe_lab.engine.applied import Applied
from moe_lab.engine.ranking import Ranking, ranking_of
from moe_lab.engine.recorder import Recorder
from moe_lab.engine.seqlock import Seqlock
from moe_lab.kernels.ledger import book_of, enter, page_of
from moe_lab.kernels.record import Counts, Ring, Spent, Totals
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walked import Walked

CAPACITY = 4096
"""Tokens the ring holds."""
LOGITS_KEPT = 64
"""Tokens whose router logits are kept, for explanations."""
PREFILL, DECODE = 0, 1


@dataclass(frozen=True)
class Snapshot:
    """The engine at one moment. Arrays are copies, (L, E)."""

    token: int
    """Tokens routed since the engine was loaded."""
    resident: np.ndarray
    used: np.ndarray
    """Used by the last token."""
    loaded: np.ndarray
    """Read from disk for the last token."""
    swapped: np.ndarray
    """Used by the last token though outside its original top K."""
    uses: np.ndarray
    hits: np.ndarray
    last_use: np.ndarray
    """Token of the last use, -1 for never."""
    logits: np.ndarray
    """Router logits of the last token, float32."""
    slots: int
    hit_rate: float
    """Over the last 64 decoded tokens."""
    tokens_per_s: float
    read_bytes_per_token: float
    times: dict[str, float]
    """Mean seconds a token: read_s, route_s, experts_s, rest_s."""
    state: str
    """The setting in words: routing, eviction, slots, formats, disk."""
    exact: bool
    simulated: bool
    applied: tuple[Applied, ...]
    """What was changed on the engine, the newest changes, oldest first."""


class Facts(NamedTuple):
    """What is in force on an engine, in one piece, so that readers never see half a change. See ``Snapshot``."""

    slots: int = 0
    state: str = ""
    exact: bool = True
    simulated: bool = False
    applied: tuple[Applied, ...] = ()


class _Pass:
    """Room for what one pass of T tokens does: routes (L, T, K), and for each layer bytes and seconds."""

    def __init__(self, L: int, T: int, K: int) -> None:
        self.T = T
        self.routes = Walked(*(array.reshape(L, T, *array.shape[1:]) for array in Walked.empty(L * T, K)))
        self.layers = [Walked(*(array[layer] for array in self.routes)) for layer in range(L)]
        self.spent = Spent.empty(L)
        self.page = page_of(self.routes, self.spent)
        self.done = [False] * L
        """Which layers have routed or computed."""

    def blank_the_rest(self) -> None:
        """Nothing is routed or spent in a layer that the pass has left out: it has used no expert."""
        for layer, done in enumerate(self.done):
            if not done:
                for array in (self.routes.ids, self.routes.evicted, self.routes.rank):
                    array[layer] = -1
                for array in (self.routes.gates, self.routes.hits, *self.spent):
                    array[layer] = 0
                self.routes.mass[layer] = 1


class Telemetry:
    """Ring, cumulative counts, and the recorder of the present run, for the layers that ``states`` are walked in."""

    def __init__(self, states: list[LayerState], capacity: int = CAPACITY) -> None:
        self._states = states
        self.facts = Facts()
        """What is in force; whoever changes something puts another one in its place."""
        self._lock = Seqlock()
        self.L, self.E, self.K = L, E, K = len(states), states[0].E, states[0].K
        self.ring = Ring.empty(capacity, min(LOGITS_KEPT, capacity), L, E, K)
        self.totals = Totals.empty(L, E)
        self._book = book_of(self.ring, self.totals, [state.block for state in states])
        self.token = 0
        self.begin_run()
        self._one = self._pass = _Pass(L, 1, K)
        self.settled()

    # --- the writer's side, in the order of a pass -------------------------------------------------

    def begin_run(self) -> None:
        """A run begins: its record is empty."""
        self.recorder = Recorder(self.L, self.K, self._lock)

    def begin(self, tokens: int, phase: int) -> None:
        """A pass of ``tokens`` begins."""
        self._pass = self._one if tokens == 1 else _Pass(self.L, tokens, self.K)
        self._pass.done = [False] * self.L
        self._phase = phase
        self._began = time.perf_counter()

    def room(self, layer: int) -> Walked:
        """Where the walk of ``layer`` writes to in this pass."""
        return self._pass.layers[layer]

    def routed(self, layer: int, route_s: float) -> None:
        """The walk of one layer is done."""
        self._pass.spent.route_s[layer], self._pass.done[layer] = route_s, True

    def computed(self, layer: int, read_bytes: int, wait_s: float, experts_s: float,
                 route_s: float | None = None) -> None:
        """The experts of one layer are through; ``route_s`` where ``routed`` was not called."""
        now = self._pass
        spent, now.done[layer] = now.spent, True
        spent.read_bytes[layer], spent.wait_s[layer], spent.experts_s[layer] = read_bytes, wait_s, experts_s
        if route_s is not None:
            spent.route_s[layer] = route_s

    def end(self) -> Counts:
        """The pass is through; returns its counts."""
        now, recorder, total_s = self._pass, self.recorder, time.perf_counter() - self._began
        if False in now.done:
            now.blank_the_rest()
        rows = recorder.rows(now.T)
        try:
            self._lock.begin()
            counts = enter(self._book, now.page, rows, self.token, recorder.tokens, self._phase, total_s)
            self.token += now.T
            recorder.tokens += now.T
        finally:
            self._lock.end()
        if self.facts.state:                # a score's own states are under what is told of the engine
            recorder.under(self.facts.state, self.facts.exact)
        return Counts._make(counts)

    def settled(self) -> None:
        """Residency changed outside a pass (a resize, a reset, a pass cut off)."""
        try:
            self._lock.begin()
            for layer, state in enumerate(self._states):
                self.totals.resident[layer] = state.resident
        finally:
            self._lock.end()

    # --- the readers' side --------------------------------------------------------------------------

    @property
    def routes(self) -> Walked:
        """What the last pass chose and moved, (L, T, K) and mass (L, T); for whoever made the pass."""
        return self._pass.routes

    def snapshot(self, recent: int = 64) -> Snapshot:
        """A consistent copy of the present state; rates over the last ``recent`` decoded tokens.

        Any thread may ask at any time; it gets the state after the last whole token.
        """
        arrays = self._lock.read(lambda: self._copy(recent))
        return Snapshot(**arrays, **self.facts._asdict())       # read last: in force before a token feels it

    def ranking(self, layer: int) -> Ranking | None:
        """The last token's ranking at a layer, None before the first token. Any thread may ask at any time."""
        def read() -> tuple[int, np.ndarray, np.ndarray]:
            return self.token, self.ring.logits[self._last(), layer].copy(), self.totals.scores[layer].copy()

        token, logits, scores = self._lock.read(read)
        return ranking_of(logits, scores) if token else None

    def _last(self) -> int:
        """Where the logits of the last token stand."""
        return (self.token - 1) % len(self.ring.logits)

    def _copy(self, recent: int) -> dict:
        token, ring = self.token, self.ring
        shape = (self.L, self.E)
        used, loaded, swapped = (np.zeros(shape, dtype=np.bool_) for _ in range(3))
        if token:
            row = (token - 1) % ring.capacity
            ids = ring.ids[row]
            chosen = ids >= 0
            at = np.nonzero(chosen)[0], ids[chosen]
            used[at] = True
            loaded[at] = ~ring.hits[row][chosen]
            swapped[at] = (ring.rank[row] >= self.K)[chosen]
        return dict(
            token=token, used=used, loaded=loaded, swapped=swapped, resident=self.totals.resident.copy(),
            uses=self.totals.uses.copy(), hits=self.totals.hits.copy(), last_use=self.totals.last_use.copy(),
            logits=ring.logits[self._last()].copy(), **self._rates(recent),
        )

    def _rates(self, recent: int) -> dict:
        """Means over the decoded ones of the last ``recent`` tokens; zeros of none."""
        token, ring = self.token, self.ring
        rows = np.arange(max(0, token - recent), token) % ring.capacity
        rows = rows[ring.phase[rows] == DECODE]
        if not rows.size:
            return dict(hit_rate=0.0, tokens_per_s=0.0, read_bytes_per_token=0.0,
                        times=dict.fromkeys(("read_s", "route_s", "experts_s", "rest_s"), 0.0))
        n, total = rows.size, float(ring.total_s[rows].sum())
        times = {"read_s": float(ring.wait_s[rows].sum()) / n, "route_s": float(ring.route_s[rows].sum()) / n,
                 "experts_s": float(ring.experts_s[rows].sum()) / n}
        times["rest_s"] = max(0.0, total / n - sum(times.values()))
        uses = int(np.count_nonzero(ring.ids[rows] >= 0))
        return dict(
            hit_rate=int(np.count_nonzero(ring.hits[rows])) / uses if uses else 0.0,
            tokens_per_s=n / total if total else 0.0, read_bytes_per_token=float(ring.read_bytes[rows].sum()) / n,
            times=times,
        )
