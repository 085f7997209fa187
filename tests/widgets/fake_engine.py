"""An engine without a model: the surface that the dashboard relies on, with routes from a random taste.

LRU residency by the house rule (all K judged against the set before the token), policies from a table of its
own, wishes at once. For unit tests of the widgets and for looking at the page without a model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from moe_lab import Sampling
from moe_lab.engine.applied import Applied, ChangeLog, actor
from moe_lab.errors import BudgetError, SettingError
from moe_lab.policy import Parameter, Policy

CELL = """
import fake_engine, moe_lab_widgets.controls as controls
controls.shipped = lambda: fake_engine.TABLES
from moe_lab_widgets import Lab
"""
"""How a cell of a notebook begins that shows such an engine: with policies of its table."""

WORDS = ("def ", "fibonacci", "(n", "):\n", "    ", "return ", "n ", "if ", "< ", "2 ", "else ", "+ ", "the ", "cache ", "of ")


class Original(Policy):
    """The router's own choice."""

    kind = "routing"
    lossy = False


class CachePrior(Policy):
    """Raises experts that are resident."""

    kind = "routing"
    penalty = Parameter(0.5, 0, 1, doc="how strongly residents are preferred", open_ended=True)
    keep_top = Parameter(1, 0, 4, doc="experts that are always taken", integer=True)
    lossy = True


class LRU(Policy):
    """The expert used longest ago leaves."""

    kind = "eviction"


class AgedLFU(Policy):
    """Few uses leave first; uses lose weight with age."""

    kind = "eviction"
    half_life = Parameter(64, 1, 4096, unit="uses", doc="uses until a use counts half")


TABLES = {"routing": {p.name: p for p in (Original, CachePrior)}, "eviction": {p.name: p for p in (LRU, AgedLFU)}}


class FakeDisk:
    """A simulated disk that only knows its bandwidth."""

    bandwidth = 200e6

    def __repr__(self) -> str:
        return f"simulated disk, {self.bandwidth / 1e6:g} MB/s"


class FakeEngine:
    """``L`` layers x ``E`` experts, ``K`` a token; ``token_s`` is slept for each token (the GIL is free)."""

    def __init__(self, L: int = 6, E: int = 64, K: int = 8, slots: int = 16, token_s: float = 0.0, disk: Any = None,
                 capacity: int = 4096) -> None:
        self.rng = np.random.default_rng(7)
        self.taste = np.log(self.rng.dirichlet(np.full(E, 0.15), L) + 1e-4)
        self.spec = SimpleNamespace(
            name="fake", family="fake", layers=tuple(range(L)), experts=E, top_k=K, context=2048, L=L,
            expert_bytes={"f32": 98304}, dtype="f32")
        self.format = SimpleNamespace(name="f32")
        self.disk, self.seed, self.token_s = disk, 0, token_s
        self._log = ChangeLog()
        self._bandwidth = disk.bandwidth if disk else 0.0
        self._routing, self._eviction, self._sampling = Original(), LRU(), None
        self.busy = False
        self._stopping = False
        self.fail_at: int | None = None
        self.word: Any = lambda i: WORDS[i % len(WORDS)]
        self.tokenizer: Any = lambda text: {"input_ids": [1] * len(text.split())}
        self._slots = slots
        self.telemetry = FakeTelemetry(self, capacity)

    def _note(self, knob: str, value: Any, before: Any) -> None:
        if value != before or value is None:
            self._log.add(knob, value, before, self.telemetry.token, actor())

    @property
    def applied(self) -> tuple[Applied, ...]:
        if self.disk is not None and self.disk.bandwidth != self._bandwidth:
            before, self._bandwidth = self._bandwidth, self.disk.bandwidth
            self._note("disk", self._bandwidth, before)
        return self._log.entries

    @property
    def routing(self) -> Any:
        return self._routing

    @routing.setter
    def routing(self, policy: Any) -> None:
        before, self._routing = self._routing, policy
        self._note("routing", policy, before)

    @property
    def eviction(self) -> Any:
        return self._eviction

    @eviction.setter
    def eviction(self, policy: Any) -> None:
        before, self._eviction = self._eviction, policy
        self._note("eviction", policy, before)

    @property
    def sampling(self) -> Any:
        return self._sampling

    @sampling.setter
    def sampling(self, sampling: Any) -> None:
        if self.busy:
            before, self._sampling = self._sampling, sampling
            self._note("sampling", sampling, before)

    def stop(self) -> bool:
        self._stopping = self.busy
        return self.busy

    @property
    def exact(self) -> bool:
        return not self.routing.lossy

    @property
    def cache(self) -> Any:
        return SimpleNamespace(slots=self._slots, resize=self._resize, reset=self._reset)

    def _resize(self, slots: int) -> None:
        if slots < self.spec.top_k:
            raise BudgetError(f"{slots} slots are under the floor of {self.spec.top_k}; type cache.resize(8) or more")
        before, self._slots = self._slots, slots
        self._note("cache", slots, before)
        self._shrink(set())

    def _reset(self) -> None:
        self.telemetry.resident[:] = False
        self._note("reset", None, None)

    def _shrink(self, keep: set[tuple[int, int]]) -> None:
        t = self.telemetry
        for layer in range(self.spec.L):
            live = np.flatnonzero(t.resident[layer])
            order = live[np.argsort(t.tick[layer, live])]
            t.resident[layer, order[: max(0, live.size - self._slots)]] = False

    def stream(self, prompt: Any, *, max_new_tokens: int = 128, **options: Any) -> Iterator[Any]:
        if max_new_tokens < 1:
            raise SettingError(f"max_new_tokens={max_new_tokens!r} must be a number of tokens, 1 or more")
        if not len(prompt):
            raise SettingError("prompt is empty; type at least one word")
        return self._stream(max_new_tokens, Sampling(**{k: v for k, v in options.items() if k in vars(Sampling())}))

    def _stream(self, count: int, sampling: Sampling) -> Iterator[Any]:
        self.busy, self._stopping = True, False
        self.sampling = sampling
        try:
            for index in range(count):
                if self._stopping:
                    return
                if self.fail_at is not None and self.telemetry.token == self.fail_at:
                    self.fail_at = None
                    raise ZeroDivisionError("division by zero")
                yield self._step(index, "length" if index + 1 == count else "")
        finally:
            self.busy = False

    def _step(self, index: int, finish: str) -> Any:
        t, (L, K) = self.telemetry, (self.spec.L, self.spec.top_k)
        logits = (self.taste + self.rng.gumbel(size=self.taste.shape)).astype(np.float32)
        bonus = 6.0 * self.routing.values().get("penalty", 0.0) * t.resident
        ids = np.argsort(-(logits + bonus), axis=1, kind="stable")[:, :K].astype(np.int32)
        rows = np.arange(L)[:, None]
        rank = (logits[:, None, :] > logits[rows, ids][:, :, None]).sum(2).astype(np.int16)
        hits = t.resident[rows, ids]
        t.note(ids, hits, rank, logits)
        self._shrink(set())
        loads = int((~hits).sum())
        read_s = loads * 98304 / self.disk.bandwidth if self.disk else 0.0
        if self.token_s or read_s:
            time.sleep(self.token_s + read_s)
        times = SimpleNamespace(read_s=read_s, route_s=1e-4, experts_s=2e-4, rest_s=self.token_s)
        return SimpleNamespace(
            index=index, position=t.token - 1, text=self.word(t.token), ids=(t.token % 50,), hits=int(hits.sum()),
            misses=loads, swapped=int((rank >= K).sum()), read_bytes=loads * 98304, touched_bytes=0, times=times,
            finish=finish)

    def ranking(self, layer: int) -> Any:
        t = self.telemetry
        bonus = 6.0 * self.routing.values().get("penalty", 0.0) * t.before[layer]
        places = [np.argsort(np.argsort(-row, kind="stable")).astype(np.int16) for row in (t.logits[layer], t.logits[layer] + bonus)]
        return SimpleNamespace(before=places[0], after=places[1]) if t.token else None

    def explain(self, step: Any = None) -> list[str]:
        row = (self.telemetry.token - 1) % self.telemetry.ring.capacity
        missed = int((~self.telemetry.ring.hits[row]).sum())
        return [f"layer 0 used expert {self.telemetry.ring.ids[row, 0, 0]}", f"{missed} experts were read"]


class FakeTelemetry:
    """Ring and counts of a ``FakeEngine``."""

    def __init__(self, engine: FakeEngine, capacity: int) -> None:
        L, E, K = engine.spec.L, engine.spec.experts, engine.spec.top_k
        self.engine, self.token = engine, 0
        self.resident = np.zeros((L, E), bool)
        self.uses, self.hits = np.zeros((L, E), np.int64), np.zeros((L, E), np.int64)
        self.last_use, self.tick = np.full((L, E), -1, np.int64), np.full((L, E), -1, np.int64)
        self.logits = np.zeros((L, E), np.float32)
        self.before = np.zeros((L, E), bool)
        self.ring = SimpleNamespace(capacity=capacity, ids=np.full((capacity, L, K), -1, np.int32),
                                    hits=np.zeros((capacity, L, K), bool), rank=np.zeros((capacity, L, K), np.int16))

    def note(self, ids: np.ndarray, hits: np.ndarray, rank: np.ndarray, logits: np.ndarray) -> None:
        row, rows = self.token % self.ring.capacity, np.arange(len(ids))[:, None]
        self.ring.ids[row], self.ring.hits[row], self.ring.rank[row] = ids, hits, rank
        self.before = self.resident.copy()
        self.resident[rows, ids] = True
        self.uses[rows, ids] += 1
        self.hits[rows, ids] += hits
        self.last_use[rows, ids] = self.token
        self.tick[rows, ids] = self.token * 100 + np.arange(ids.shape[1])
        self.logits = logits
        self.token += 1

    def snapshot(self, recent: int = 64) -> Any:
        used, loaded, swapped = (np.zeros_like(self.resident) for _ in range(3))
        if self.token:
            row, rows = (self.token - 1) % self.ring.capacity, np.arange(len(self.resident))[:, None]
            ids = self.ring.ids[row]
            used[rows, ids] = True
            loaded[rows, ids] = ~self.ring.hits[row]
            swapped[rows, ids] = self.ring.rank[row] >= self.engine.spec.top_k
        return SimpleNamespace(
            token=self.token, resident=self.resident.copy(), used=used, loaded=loaded, swapped=swapped,
            uses=self.uses.copy(), hits=self.hits.copy(), last_use=self.last_use.copy(), logits=self.logits.copy(),
            slots=self.engine._slots, exact=self.engine.exact, simulated=self.engine.disk is not None)
