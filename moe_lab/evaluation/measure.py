"""One setting over one text: what it costs in quality and in reads.

Knows an engine, and the original routing over the same text to compare with. Passes go window by window in states
of their own (``engine.fresh_state``), so the live engine is as before. What comes out are plain sums by window and
by layer that JSON can hold; rates and intervals are made of them in ``points``.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moe_lab.cache import Held
from moe_lab.engine.score import loss_of, windows
from moe_lab.errors import NotFiniteError, PolicyError
from moe_lab.evaluation.logits import KeptLogits
from moe_lab.eviction import LRU, EvictionPolicy
from moe_lab.kernels.belady import belady
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walk import forced, walk
from moe_lab.kernels.walked import Walked
from moe_lab.routing import Original, RoutingPolicy
from moe_lab.trace import Trace

if TYPE_CHECKING:
    from moe_lab.engine import Engine

KEPT_BYTES = 4 << 30
"""Scratch file for the logits of the original routing; windows beyond it are run again for every point."""
_CHUNK_BYTES = 2 << 20
"""Float32 logits that are compared at a time: few enough to stay in the processor's cache."""

COUNTED = ("uses", "misses", "swapped", "waits", "stay", "bound")
"""What is counted in each layer; ``mass`` is added up beside it."""
FAILURES = (PolicyError, NotFiniteError)
"""What one setting may fail with while the others go on."""

Tick = Callable[[int], object]
"""Told of every window's tokens when they are through."""


@dataclass(frozen=True)
class Setting:
    """Routing, eviction and slots a layer: one point of a grid."""

    routing: RoutingPolicy
    eviction: EvictionPolicy
    slots: int

    @property
    def replayable(self) -> bool:
        """Whether the recorded routes of the original routing say all about it: no pass is needed."""
        return not self.routing.lossy and "logits" not in self.eviction.needs


class Tally:
    """Counts by layer, window after window, each from an empty start. ``C`` slots of ``E`` experts.

    ``counts``: (L,) int64 by name; ``mass``: (L,) float64, gate mass kept, summed over tokens.
    """

    def __init__(self, L: int, E: int, C: int) -> None:
        self.E, self.C = E, C
        self.counts = {name: np.zeros(L, dtype=np.int64) for name in COUNTED}
        self.mass = np.zeros(L, dtype=np.float64)

    def add(self, routes: Walked) -> None:
        """One window, (L, T, K). A stay lasts from the token that loads an expert to the one that evicts it, or to
        the window's end."""
        used, left = routes.ids >= 0, routes.evicted >= 0
        missed, T, K = used & ~routes.hits, *routes.ids.shape[1:]
        token = np.arange(T)[:, None]
        here = missed.sum((1, 2)) - left.sum((1, 2))
        new = {"uses": used.sum((1, 2)), "misses": missed.sum((1, 2)),
               "swapped": (used & (routes.rank >= K)).sum((1, 2)), "waits": missed.any(2).sum(1),
               "stay": (left * token).sum((1, 2)) - (missed * token).sum((1, 2)) + T * here,
               "bound": np.array([belady(ids, self.E, self.C) for ids in routes.ids])}
        for name, value in new.items():
            self.counts[name] += value
        self.mass += routes.mass.sum(1, dtype=np.float64)

    def record(self) -> dict[str, list[float]]:
        """The sums as plain lists, one number a layer."""
        return {name: value.tolist() for name, value in [*self.counts.items(), ("mass", self.mass)]}


class Reference:
    """The original routing over a text: losses, routes, and its logits for as long as this lives.

    ``record`` and ``trace`` may come from disk; logits are then made when the first comparison needs them.
    """

    def __init__(self, engine: Engine, ids: list[int], window: int, held: Held, scratch: Path | None,
                 record: dict[str, Any] | None, trace: Trace | None, kept_bytes: int = KEPT_BYTES) -> None:
        self.engine, self.ids, self.window, self.held = engine, ids, window, held
        whole = record is not None and trace is not None
        self.record, self.trace = (record, trace) if whole else (None, None)
        self._scratch, self._limit = scratch, kept_bytes
        self._logits: KeptLogits | None = None

    @property
    def ready(self) -> bool:
        """Whether losses and routes are known."""
        return self.record is not None

    @property
    def runs(self) -> int:
        """Passes over the text that a comparison of logits needs before it can begin."""
        return int(self._logits is None)

    def run(self, tick: Tick, check: Callable[[], None] | None = None) -> None:
        """Pass over the text; keep losses, routes and as many logits as fit, unless ``check`` raises at the end.

        Raises:
            NotFiniteError: the model's own loss is NaN.
        """
        engine, began = self.engine, time.perf_counter()
        kept = KeptLogits(self._scratch, self._limit)
        losses: list[float] = []
        tokens: list[int] = []
        with engine.fresh_state(Original(), LRU(), engine.spec.experts, self.held) as telemetry:
            for logits, targets in windows(engine, self.ids, self.window, fresh=True):
                losses.append(_loss(logits, targets, len(losses), "the original routing"))
                tokens.append(len(targets))
                kept.add(logits)
                tick(len(targets))
            routes, gates, phase = telemetry.recorder.arrays()
            found = telemetry.recorder.digest()
        if check is not None:
            check()
        self._logits = kept
        self.record = {"tokens": tokens, "losses": losses, "kl": [0.0] * len(tokens), "same": tokens, "digest": found,
                       "elapsed_s": time.perf_counter() - began, "made": made()}
        self.trace = Trace(ids=routes, weights=gates, phase=phase, experts=engine.spec.experts,
                           meta={"model": engine.spec.name, "setting": "original routing", "window": self.window})

    def logits(self, number: int) -> torch.Tensor:
        """(n, V) of window ``number``, as the model gave them; run again where they were not kept."""
        if self._logits is not None and (kept := self._logits.get(number)) is not None:
            return kept
        start = number * self.window
        part = self.ids[start : start + self.window + 1]
        with self.engine.fresh_state(Original(), LRU(), self.engine.spec.experts, self.held):
            return next(windows(self.engine, part, self.window, fresh=True))[0]

    def close(self) -> None:
        """Let logits and experts go."""
        self.held = Held(self.held.limit)
        if self._logits is not None:
            self._logits.close()
            self._logits = None


def measure(engine: Engine, setting: Setting, reference: Reference, tick: Tick) -> dict[str, Any]:
    """A setting over the reference's text: sums of loss, KL and agreement by window, of routes by layer.

    Where the routes are the original ones they are settled again from the record; else every window takes a pass.

    Raises:
        PolicyError: a policy that fails on the way.
        NotFiniteError: a loss that is NaN.
    """
    assert reference.record is not None
    tokens, began = reference.record["tokens"], time.perf_counter()
    if setting.replayable:
        tally = _settle_again(engine, setting, reference, tick)
        found: dict[str, Any] = {key: reference.record[key] for key in ("tokens", "losses", "kl", "same", "digest")}
    else:
        tally = Tally(engine.spec.L, engine.spec.experts, setting.slots)
        losses, kl, same = [], [], []
        with engine.fresh_state(setting.routing, setting.eviction, setting.slots, reference.held) as telemetry:
            passes = windows(engine, reference.ids, reference.window, fresh=True)
            for number, (logits, targets) in enumerate(passes):
                losses.append(_loss(logits, targets, number, f"routing={setting.routing!r}"))
                tally.add(telemetry.routes)
                distance, agreed = compare(reference.logits(number), logits)
                kl.append(distance)
                same.append(agreed)
                tick(len(targets))
            digest = telemetry.recorder.digest()
        found = {"tokens": tokens, "losses": losses, "kl": kl, "same": same, "digest": digest}
    return {**found, "layers": tally.record(), "elapsed_s": time.perf_counter() - began, "made": made()}


def _loss(logits: torch.Tensor, targets: torch.Tensor, number: int, routing: str) -> float:
    """The summed loss of window ``number``."""
    loss = loss_of(logits, targets)
    if math.isnan(loss):
        raise NotFiniteError(f"the loss of window {number} is NaN under {routing}: the model's logits are no numbers "
                             "there; look for weights that are NaN or too large, or take another precision")
    return loss


def _settle_again(engine: Engine, setting: Setting, reference: Reference, tick: Tick) -> Tally:
    """Walk the recorded routes again."""
    spec, trace = engine.spec, reference.trace
    assert trace is not None and trace.weights is not None and reference.record is not None
    E, K = spec.experts, spec.top_k
    tally = Tally(spec.L, E, setting.slots)
    states = [LayerState.new(E, K, setting.slots, Original(), setting.eviction, layer, engine.seed)
              for layer in range(spec.L)]
    start = 0
    for n in reference.record["tokens"]:
        logits, weights = forced(trace.ids[start : start + n], trace.weights[start : start + n], E)
        walked = []
        for place, state in enumerate(states):
            state.reset()
            walked.append(walk(state, logits[:, place], weights[:, place]))
        tally.add(Walked(*(np.stack(parts) for parts in zip(*walked, strict=True))))
        tick(n)
        start += n
    return tally


def compare(original: torch.Tensor, routed: torch.Tensor) -> tuple[float, int]:
    """KL(original || routed) in nats, summed over the rows of logits (n, V), and how many rows agree on the first
    choice; exact over the whole vocabulary, a chunk of rows at a time in float32.

    >>> distance, same = compare(torch.zeros(2, 4), torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
    >>> round(distance, 4), same
    (0.1074, 1)
    """
    rows = max(1, _CHUNK_BYTES // (4 * original.shape[1]))
    distance, same = 0.0, 0
    for start in range(0, len(original), rows):
        p, q = original[start : start + rows].float(), routed[start : start + rows].float()
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        apart = torch.sub(log_p, log_q, out=log_q)
        weight = log_p.exp_()
        part = torch.linalg.vecdot(weight, apart).double().sum()
        if part.isnan():        # a token that the model masks with -inf has weight 0 and adds nothing
            part = torch.linalg.vecdot(weight, apart.masked_fill_(p == -torch.inf, 0)).double().sum()
        distance += float(part)
    return distance, same


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("moe-lab", "torch", "transformers", "numba", "numpy")}


def made() -> dict[str, Any]:
    """With what a figure was made."""
    return {"versions": _versions(), "machine": platform.machine(), "cpus": os.cpu_count(),
            "threads": torch.get_num_threads()}
