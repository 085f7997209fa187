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
from typing import Any

import numpy as np

from moe_lab.engine.records import Phase, Times
from moe_lab.kernels.walk import Walked

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

    def __init__(self, L: int) -> None:
        self._ids: list[list[np.ndarray]] = [[] for _ in range(L)]
        self._gates: list[list[np.ndarray]] = [[] for _ in range(L)]
        self._hash = [hashlib.blake2b(digest_size=16) for _ in range(L)]
        self._phase: list[np.ndarray] = []
        self.phases = [Phase(), Phase()]

    def passed(self, walked: list[Walked], phase: int, counts: Phase) -> None:
        """Note the routes of a whole pass, one ``Walked`` a layer; a pass that was cut off is never noted."""
        for layer, one in enumerate(walked):
            self._ids[layer].append(one.ids)
            self._gates[layer].append(one.gates)
            self._hash[layer].update(one.ids)
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
        phase = np.concatenate(self._phase) if self._phase else np.zeros(0, dtype=np.uint8)
        if not phase.size:
            return np.zeros((0, len(self._ids), 0), np.int32), np.zeros((0, len(self._ids), 0), np.float32), phase
        ids = np.stack([np.concatenate(layer) for layer in self._ids], axis=1)
        return ids, np.stack([np.concatenate(layer) for layer in self._gates], axis=1), phase


class Telemetry:
    """Ring, cumulative counts, and the recorder of the present run."""

    def __init__(self, L: int, E: int, K: int, capacity: int = CAPACITY,
                 describe: Callable[[], dict[str, Any]] | None = None) -> None:
        self.L, self.E, self.K = L, E, K
        self._describe = describe or (lambda: {"slots": 0, "state": "", "exact": True, "simulated": False})
        self.ring = Ring(L, K, E, capacity)
        self.token = 0
        self.uses = np.zeros((L, E), dtype=np.int64)
        self.hits = np.zeros((L, E), dtype=np.int64)
        self.last_use = np.full((L, E), -1, dtype=np.int64)
        self.resident = np.zeros((L, E), dtype=np.bool_)
        self.recorder = Recorder(L)
        self._version = 0
        self._layer_of = np.broadcast_to(np.arange(L)[:, None], (L, K))

    # --- the writer's side, in the order of a pass -------------------------------------------------

    def begin(self, tokens: int, phase: int) -> None:
        """A pass of ``tokens`` begins."""
        self._T, self._phase, self._walked = tokens, phase, []
        self._read, self._wait, self._route, self._experts = 0, 0.0, 0.0, 0.0
        self._rows_now = self._rows()
        self._began = time.perf_counter()

    def routed(self, layer: int, walked: Walked, logits: np.ndarray, before: np.ndarray, route_s: float) -> None:
        """The walk of one layer is done. ``logits`` (T, E) float32, ``before`` (E,) bool: resident before it."""
        ring, rows, kept = self.ring, self._rows_now, -self.ring.capacity
        ring.ids[rows, layer] = walked.ids[kept:]
        ring.gates[rows, layer] = walked.gates[kept:]
        ring.hits[rows, layer] = walked.hits[kept:]
        ring.rank[rows, layer] = walked.rank[kept:]
        ring.evicted[rows, layer] = walked.evicted[kept:]
        ring.route_s[rows, layer] = route_s / self._T
        last = (self.token + self._T - 1) % LOGITS_KEPT
        ring.logits[last, layer] = logits[-1]
        ring.resident[last, layer] = before
        self._route += route_s
        self._walked.append(walked)

    def computed(self, layer: int, slots: np.ndarray | None, read_bytes: int, wait_s: float, experts_s: float) -> None:
        """The experts of one layer are through; bytes and times of a pass stand at its last token."""
        row, ring = (self.token + self._T - 1) % self.ring.capacity, self.ring
        ring.slots[row, layer] = -1 if slots is None else slots
        ring.read_bytes[row, layer] = read_bytes
        ring.wait_s[row, layer] = wait_s
        ring.experts_s[row, layer] = experts_s
        self._read += read_bytes
        self._wait += wait_s
        self._experts += experts_s

    def end(self, resident: list[np.ndarray] | None) -> Phase:
        """The pass is through; returns its counts. ``resident`` are the layers' (E,) bool, None for a score."""
        total = time.perf_counter() - self._began
        self._version += 1
        self.ring.total_s[self._rows_now] = total / self._T
        self.ring.phase[self._rows_now] = self._phase
        uses, hits, swapped = self._count_token() if self._T == 1 else self._count_tokens()
        if resident is not None:
            for layer, now in enumerate(resident):
                self.resident[layer] = now
        self.token += self._T
        self._version += 1
        mass = sum(float(walked.mass.sum()) for walked in self._walked)
        rest = max(0.0, total - self._wait - self._route - self._experts)
        counts = Phase(self._T, hits, uses - hits, swapped, mass, self._T * self.L, self._read,
                       Times(self._wait, self._route, self._experts, rest))
        self.recorder.passed(self._walked, self._phase, counts)
        return counts

    def _count_token(self) -> tuple[int, int, int]:
        """Add one token to the cumulative counts, all layers at once; returns uses, hits, swapped."""
        row = self.token % self.ring.capacity
        ids, hit = self.ring.ids[row], self.ring.hits[row]
        chosen = ids >= 0
        at = self._layer_of[chosen], ids[chosen]
        self.uses[at] += 1
        self.hits[at] += hit[chosen]
        self.last_use[at] = self.token
        return at[1].size, int(np.count_nonzero(hit)), int(np.count_nonzero((self.ring.rank[row] >= self.K) & chosen))

    def _count_tokens(self) -> tuple[int, int, int]:
        """The same for a pass of many tokens, layer by layer."""
        uses = hits = swapped = 0
        tokens = np.repeat(np.arange(self._T) + self.token, self.K)
        for layer, walked in enumerate(self._walked):
            chosen = walked.ids >= 0
            ids = walked.ids[chosen]
            self.uses[layer] += np.bincount(ids, minlength=self.E)
            self.hits[layer] += np.bincount(walked.ids[walked.hits], minlength=self.E)
            np.maximum.at(self.last_use[layer], ids, tokens[chosen.ravel()])
            uses += ids.size
            hits += int(np.count_nonzero(walked.hits))
            swapped += int(np.count_nonzero((walked.rank >= self.K) & chosen))
        return uses, hits, swapped

    def settled(self, resident: list[np.ndarray]) -> None:
        """Residency changed outside a pass (a resize, a reset, a pass cut off)."""
        self._version += 1
        for layer, now in enumerate(resident):
            self.resident[layer] = now
        self._version += 1

    def _rows(self) -> slice | np.ndarray:
        """Ring rows of the pass in progress, or of its last tokens if it is longer than the ring."""
        capacity = self.ring.capacity
        count = min(self._T, capacity)
        first = (self.token + self._T - count) % capacity
        if first + count <= capacity:
            return slice(first, first + count)
        return (np.arange(count) + first) % capacity

    # --- the readers' side --------------------------------------------------------------------------

    def snapshot(self, recent: int = 64) -> Snapshot:
        """A consistent copy of the present state; rates over the last ``recent`` decoded tokens.

        Any thread may ask at any time; it gets the state after the last whole token.
        """
        while True:
            version = self._version
            copy = self._copy(recent)
            if version == self._version and version & 1 == 0:
                break
            time.sleep(0.0001)
        return Snapshot(**copy, **self._describe())

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
