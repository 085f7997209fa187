"""What happened, token by token and layer by layer, in arrays that are always on.

One writer (the thread that generates), any number of readers. A reader takes a ``Snapshot`` and never
holds the writer up: the writer counts a version up before and after each change, a reader that sees it
move copies again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from moe_lab.engine.ranking import Ranking, ranking_of
from moe_lab.engine.records import Phase, Times
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walk import Walked

CAPACITY = 4096
"""Tokens the ring holds."""
LOGITS_KEPT = 64
"""Tokens whose router logits are kept, for explanations."""
PREFILL, DECODE = 0, 1

T = TypeVar("T")


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
    exact: bool
    simulated: bool


class Ring:
    """The last N tokens: arrays (N, L, K) and (N, L), one row a token, written in a circle."""

    def __init__(self, L: int, K: int, E: int, capacity: int) -> None:
        self.capacity = capacity
        self.ids = np.full((capacity, L, K), -1, dtype=np.int32)
        self.gates = np.zeros((capacity, L, K), dtype=np.float32)
        self.hits = np.zeros((capacity, L, K), dtype=np.bool_)
        self.rank = np.zeros((capacity, L, K), dtype=np.int16)
        self.slots = np.full((capacity, L, K), -1, dtype=np.int32)
        self.evicted = np.full((capacity, L, K), -1, dtype=np.int32)
        self.read_bytes = np.zeros((capacity, L), dtype=np.int64)
        self.wait_s = np.zeros((capacity, L), dtype=np.float32)
        self.route_s = np.zeros((capacity, L), dtype=np.float32)
        self.experts_s = np.zeros((capacity, L), dtype=np.float32)
        self.total_s = np.zeros(capacity, dtype=np.float32)
        self.phase = np.zeros(capacity, dtype=np.uint8)
        self.logits = np.zeros((LOGITS_KEPT, L, E), dtype=np.float32)
        self.resident = np.zeros((LOGITS_KEPT, L, E), dtype=np.bool_)
        """Who was resident before the token."""


class Recorder:
    """The routes of one run, for its trace, digest and statistics."""

    def __init__(self, L: int, K: int) -> None:
        self._ids = [np.zeros((0, L, K), dtype=np.int32)]
        self._gates = [np.zeros((0, L, K), dtype=np.float32)]
        self._phase = [np.zeros(0, dtype=np.uint8)]
        self._hash = [hashlib.blake2b(digest_size=16) for _ in range(L)]
        self.phases = [Phase(), Phase()]

    def passed(self, ids: np.ndarray, gates: np.ndarray, phase: int, counts: Phase) -> None:
        """Note a whole pass, (L, T, K); one that was cut off is never noted."""
        for layer, one in zip(self._hash, ids, strict=True):
            layer.update(one)
        self._ids.append(ids.transpose(1, 0, 2).copy())
        self._gates.append(gates.transpose(1, 0, 2).copy())
        self._phase.append(np.full(counts.tokens, phase, dtype=np.uint8))
        self.phases[phase] = self.phases[phase] + counts

    def digest(self) -> str:
        """Hash of all routes; the same for one pass or many."""
        whole = hashlib.blake2b(digest_size=16)
        for layer in self._hash:
            whole.update(layer.digest())
        return whole.hexdigest()

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids (T, L, K) int32, gates (T, L, K) float32, phase (T,) uint8 of the passes that were finished."""
        return np.concatenate(self._ids), np.concatenate(self._gates), np.concatenate(self._phase)


class _Pass:
    """Room for what one pass of T tokens does: routes (L, T, K), and for each layer bytes and seconds."""

    def __init__(self, L: int, T: int, K: int) -> None:
        self.T = T
        self.routes = Walked(*(array.reshape(L, T, *array.shape[1:]) for array in Walked.empty(L * T, K)))
        self.layers = [Walked(*(array[layer] for array in self.routes)) for layer in range(L)]
        self.slots = np.full((L, K), -1, dtype=np.int32)
        self.read_bytes, self.wait_s, self.route_s, self.experts_s = [0] * L, [0.0] * L, [0.0] * L, [0.0] * L


class Telemetry:
    """Ring, cumulative counts, and the recorder of the present run, for the layers that ``states`` are walked in."""

    def __init__(self, states: list[LayerState], capacity: int = CAPACITY,
                 describe: Callable[[], dict[str, Any]] | None = None) -> None:
        self._states = states
        self.L, self.E, self.K = L, E, K = len(states), states[0].E, states[0].K
        self._describe = describe or (lambda: {"slots": 0, "state": "", "exact": True, "simulated": False})
        self.ring = Ring(L, K, E, capacity)
        self.token = 0
        self.uses = np.zeros((L, E), dtype=np.int64)
        self.hits = np.zeros((L, E), dtype=np.int64)
        self.last_use = np.full((L, E), -1, dtype=np.int64)
        self.resident = np.stack([state.resident for state in states])
        self.scores = np.zeros((L, E), dtype=np.float32)
        """Of the last token, by the routing policy."""
        self.recorder = Recorder(L, K)
        self._one = self._pass = _Pass(L, 1, K)
        self._version = 0
        self._layer_of = np.broadcast_to(np.arange(L)[:, None], (L, K))

    # --- the writer's side, in the order of a pass -------------------------------------------------

    def begin(self, tokens: int, phase: int) -> None:
        """A pass of ``tokens`` begins."""
        self._pass = self._one if tokens == 1 else _Pass(self.L, tokens, self.K)
        self._phase = phase
        self._began = time.perf_counter()

    def room(self, layer: int) -> Walked:
        """Where the walk of ``layer`` writes to in this pass."""
        return self._pass.layers[layer]

    def routed(self, layer: int, route_s: float) -> None:
        """The walk of one layer is done."""
        self._pass.route_s[layer] = route_s

    def computed(self, layer: int, slots: np.ndarray | None, read_bytes: int, wait_s: float, experts_s: float) -> None:
        """The experts of one layer are through. ``slots`` (K,) of a single token."""
        now = self._pass
        if slots is not None:
            now.slots[layer] = slots
        now.read_bytes[layer], now.wait_s[layer], now.experts_s[layer] = read_bytes, wait_s, experts_s

    def end(self) -> Phase:
        """The pass is through; returns its counts."""
        now, total = self._pass, time.perf_counter() - self._began
        self._version += 1
        self._to_ring(now, total)
        uses, hits, swapped = self._count(now)
        self._look(now)
        self.token += now.T
        self._version += 1
        wait, route, experts = sum(now.wait_s), sum(now.route_s), sum(now.experts_s)
        times = Times(wait, route, experts, max(0.0, total - wait - route - experts))
        counts = Phase(now.T, hits, uses - hits, swapped, float(now.routes.mass.sum()), now.T * self.L,
                       sum(now.read_bytes), times)
        self.recorder.passed(now.routes.ids, now.routes.gates, self._phase, counts)
        return counts

    def _to_ring(self, now: _Pass, total: float) -> None:
        """Write the pass, or its last tokens if it is longer than the ring; bytes and times of the pass stand
        at its last token."""
        ring, rows, kept = self.ring, self._rows(now.T), -self.ring.capacity
        for name in ("ids", "gates", "hits", "rank", "evicted"):
            getattr(ring, name)[rows] = getattr(now.routes, name)[:, kept:].transpose(1, 0, 2)
        last = (self.token + now.T - 1) % ring.capacity
        if now.T > 1:
            for array in (ring.read_bytes, ring.wait_s, ring.route_s, ring.experts_s):
                array[rows] = 0
            ring.slots[rows] = -1
        ring.slots[last] = now.slots
        ring.read_bytes[last], ring.wait_s[last] = now.read_bytes, now.wait_s
        ring.route_s[last], ring.experts_s[last] = now.route_s, now.experts_s
        ring.total_s[rows] = total / now.T
        ring.phase[rows] = self._phase

    def _look(self, now: _Pass) -> None:
        """Take from the layers what their last token saw, and who is resident after it."""
        row = (self.token + now.T - 1) % LOGITS_KEPT
        for layer, state in enumerate(self._states):
            self.ring.logits[row, layer], self.ring.resident[row, layer] = state.logits, state.before
            self.scores[layer], self.resident[layer] = state.scores, state.resident

    def _count(self, now: _Pass) -> tuple[int, int, int]:
        """Add the pass to the cumulative counts; returns uses, hits, swapped."""
        ids, hits = now.routes.ids, now.routes.hits
        if now.T == 1 and ids.min() >= 0:                # the usual token: all K experts, in all layers
            at = self._layer_of, ids[:, 0]
            self.uses[at] += 1
            self.hits[at] += hits[:, 0]
            self.last_use[at] = self.token
            return ids.size, int(np.count_nonzero(hits)), int(np.count_nonzero(now.routes.rank >= self.K))
        chosen = ids >= 0
        if now.T == 1:
            at = self._layer_of[chosen[:, 0]], ids[chosen]
            self.uses[at] += 1
            self.hits[at] += hits[chosen]
            self.last_use[at] = self.token
        else:
            tokens = np.repeat(np.arange(now.T) + self.token, self.K).reshape(now.T, self.K)
            for layer in range(self.L):
                used = chosen[layer]
                self.uses[layer] += np.bincount(ids[layer][used], minlength=self.E)
                self.hits[layer] += np.bincount(ids[layer][hits[layer] & used], minlength=self.E)
                np.maximum.at(self.last_use[layer], ids[layer][used], tokens[used])
        swapped = np.count_nonzero((now.routes.rank >= self.K) & chosen)
        return int(np.count_nonzero(chosen)), int(np.count_nonzero(hits & chosen)), int(swapped)

    def settled(self) -> None:
        """Residency changed outside a pass (a resize, a reset, a pass cut off)."""
        self._version += 1
        for layer, state in enumerate(self._states):
            self.resident[layer] = state.resident
        self._version += 1

    def _rows(self, T: int) -> slice | np.ndarray:
        """Ring rows of a pass of ``T`` tokens that begins at ``token``, or of its last ones."""
        capacity = self.ring.capacity
        count = min(T, capacity)
        first = (self.token + T - count) % capacity
        if first + count <= capacity:
            return slice(first, first + count)
        return (np.arange(count) + first) % capacity

    # --- the readers' side --------------------------------------------------------------------------

    @property
    def routes(self) -> Walked:
        """What the last pass chose and moved, (L, T, K) and mass (L, T); for whoever made the pass."""
        return self._pass.routes

    def snapshot(self, recent: int = 64) -> Snapshot:
        """A consistent copy of the present state; rates over the last ``recent`` decoded tokens.

        Any thread may ask at any time; it gets the state after the last whole token.
        """
        return Snapshot(**self._whole(lambda: self._copy(recent)), **self._describe())

    def ranking(self, layer: int) -> Ranking | None:
        """The last token's ranking at a layer, None before the first token. Any thread may ask at any time."""
        def read() -> tuple[int, np.ndarray, np.ndarray]:
            return self.token, self.ring.logits[(self.token - 1) % LOGITS_KEPT, layer].copy(), self.scores[layer].copy()

        token, logits, scores = self._whole(read)
        return ranking_of(logits, scores) if token else None

    def _whole(self, read: Callable[[], T]) -> T:
        """What ``read`` finds while the writer changes nothing."""
        while True:
            version = self._version
            found = read()
            if version == self._version and version & 1 == 0:
                return found
            time.sleep(0.0001)

    def _copy(self, recent: int) -> dict:
        token, ring = self.token, self.ring
        shape = (self.L, self.E)
        used, loaded, swapped = (np.zeros(shape, dtype=np.bool_) for _ in range(3))
        if token:
            row = (token - 1) % ring.capacity
            ids = ring.ids[row]
            chosen = ids >= 0
            at = self._layer_of[chosen], ids[chosen]
            used[at] = True
            loaded[at] = ~ring.hits[row][chosen]
            swapped[at] = (ring.rank[row] >= self.K)[chosen]
        rows = np.arange(max(0, token - recent), token) % ring.capacity
        rows = rows[ring.phase[rows] == DECODE]
        n = max(1, rows.size)
        total = float(ring.total_s[rows].sum())
        times = {"read_s": float(ring.wait_s[rows].sum()) / n, "route_s": float(ring.route_s[rows].sum()) / n,
                 "experts_s": float(ring.experts_s[rows].sum()) / n}
        times["rest_s"] = max(0.0, total / n - sum(times.values()))
        uses = int(np.count_nonzero(ring.ids[rows] >= 0))
        return dict(
            token=token, resident=self.resident.copy(), used=used, loaded=loaded, swapped=swapped,
            uses=self.uses.copy(), hits=self.hits.copy(), last_use=self.last_use.copy(),
            logits=ring.logits[(token - 1) % LOGITS_KEPT].copy(),
            hit_rate=int(np.count_nonzero(ring.hits[rows])) / uses if uses else 0.0,
            tokens_per_s=rows.size / total if total else 0.0,
            read_bytes_per_token=float(ring.read_bytes[rows].sum()) / n, times=times,
        )
