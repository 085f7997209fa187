"""Misses of one policy over one trace: the work behind every row of a replay.

Knows traces, policies and the kernels; each function takes one :class:`Task` and gives plain counts, here or on
another machine. Knows no rows, rates and intervals: they are made of the counts in ``replay``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from moe_lab.eviction import LRU, EvictionPolicy
from moe_lab.kernels.belady import belady
from moe_lab.kernels.layout import TOP_K
from moe_lab.kernels.replay import misses_by_window, replay_layer
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.reuse import lru_profile
from moe_lab.kernels.walk import walk
from moe_lab.routing import Original, RoutingPolicy
from moe_lab.trace import Trace

Tick = Callable[[int], object]
"""Told of every layer (the whole pool counts as one) at every size when it is through."""


@dataclass(frozen=True)
class Task:
    """What is to be counted over a trace, at some sizes (slots a layer, or of the pool).

    Without an eviction policy: Belady's bound. With a routing policy: the recorded logits are routed again.
    """

    eviction: EvictionPolicy | None
    sizes: tuple[int, ...]
    routing: RoutingPolicy | None = None
    pooled: bool = False
    window: int = 1 << 62
    """Tokens of the windows in which misses are counted."""
    seed: int = 0


@dataclass(frozen=True)
class Counts:
    """Sums over one trace at one size, by layer (one row for a pool) and, where W stands, by window."""

    misses: np.ndarray
    """(L, W) int64; (L, 1) for the bound."""
    waits: np.ndarray
    """(L, W) int64: tokens that load at least one expert; zeros for the bound."""
    uses: np.ndarray
    """(L, W) int64."""
    bound: np.ndarray | None = None
    """(L,) int64: misses of Belady's bound on the same routes, where they are not the recorded ones."""
    swapped: int = 0
    """Uses that went to an expert outside the K largest logits."""
    mass: float = 0.0
    """Gate mass of the chosen over that of the K largest logits, summed over tokens and layers."""


def count(trace: Trace, task: Task, tick: Tick = lambda _: None) -> dict[int, Counts]:
    """The counts of a task, by size.

    Raises:
        PolicyError: a policy that fails on the way.

    Example:
        >>> trace = Trace(ids=np.array([[[0, 1]], [[1, 2]], [[0, 2]]]), experts=4)
        >>> {size: int(found.misses.sum()) for size, found in count(trace, Task(LRU(), (2, 3))).items()}
        {2: 4, 3: 3}
    """
    if task.routing is not None:
        return {size: _routed(trace, task, task.routing, size, tick) for size in task.sizes}
    layers = list(_layers(trace, task.pooled))
    window, E = _windows(trace, task)
    uses = np.stack([misses_by_window(layer.ids, np.zeros(layer.ids.shape, np.bool_), window)[0] for layer in layers])
    if type(task.eviction) is LRU:
        found = []
        for layer in layers:        # all sizes at once
            profile = lru_profile(layer.ids, E, window)
            found.append([part[:, task.sizes] for part in profile])
            tick(len(task.sizes))
        misses, waits = (np.stack(parts) for parts in zip(*found, strict=True))
        return {size: Counts(misses[:, :, i], waits[:, :, i], uses) for i, size in enumerate(task.sizes)}
    return {size: _at(layers, task, E, window, size, uses, tick) for size in task.sizes}


@dataclass(frozen=True)
class _Layer:
    """What one cache sees: a layer, or all of them in turn."""

    place: int
    ids: np.ndarray
    """(N, K) int32."""
    weights: np.ndarray | None
    logits: np.ndarray | None
    rows: int
    """Of one token."""


def _layers(trace: Trace, pooled: bool) -> Iterator[_Layer]:
    """The layers of a trace; as one pool, experts are numbered through, layer after layer."""
    T, L, K = trace.ids.shape
    if pooled:
        first = (np.arange(L, dtype=np.int32) * trace.experts)[:, None]
        ids = np.where(trace.ids >= 0, trace.ids + first, np.int32(-1)).reshape(T * L, K)
        yield _Layer(0, ids, None if trace.weights is None else trace.weights.reshape(T * L, K).copy(), None, L)
        return
    for place in range(L):
        yield _Layer(place, np.ascontiguousarray(trace.ids[:, place]),
                     None if trace.weights is None else trace.weights[:, place].copy(),
                     None if trace.logits is None else trace.logits[:, place], 1)


def _windows(trace: Trace, task: Task) -> tuple[int, int]:
    """Rows of a window, and experts of one cache."""
    window = min(task.window, max(1, len(trace)))
    return (window * trace.L, trace.experts * trace.L) if task.pooled else (window, trace.experts)


def _at(layers: list[_Layer], task: Task, E: int, window: int, size: int, uses: np.ndarray, tick: Tick) -> Counts:
    """Counts at one size, layer after layer."""
    misses, waits = [], []
    for layer in layers:
        if task.eviction is None:
            misses.append(np.array([belady(layer.ids, E, size)]))
            waits.append(np.zeros(1, dtype=np.int64))
        else:
            missed, waited = misses_by_window(layer.ids, _hits(layer, task.eviction, E, size, task.seed), window)
            misses.append(missed)
            waits.append(waited)
        tick(1)
    return Counts(np.stack(misses), np.stack(waits), uses)


def _hits(layer: _Layer, policy: EvictionPolicy, E: int, size: int, seed: int) -> np.ndarray:
    """(N, K) bool: what a policy has resident."""
    K = layer.ids.shape[1]
    state = LayerState.new(E, K, size, Original(), policy, layer.place, seed)
    state.evict_state[TOP_K] = K * layer.rows       # uses of a token
    return replay_layer(layer.ids, layer.weights, state, layer.logits, layer.rows)


def _routed(trace: Trace, task: Task, routing: RoutingPolicy, size: int, tick: Tick) -> Counts:
    """Counts of routes that are made anew from the recorded logits, each layer by itself."""
    assert task.eviction is not None and trace.logits is not None
    E, K, window = trace.experts, trace.K, min(task.window, max(1, len(trace)))
    misses, waits, uses, bound = [], [], [], []
    swapped, mass = 0, 0.0
    for layer in range(trace.L):
        logits = trace.logits[:, layer].astype(np.float32)
        state = LayerState.new(E, K, size, routing, task.eviction, layer, task.seed)
        walked = walk(state, logits, softmax(logits))
        swapped += int(np.count_nonzero(walked.rank >= K))
        mass += float(walked.mass.sum(dtype=np.float64))
        missed, waited = misses_by_window(walked.ids, walked.hits, window)
        misses.append(missed)
        waits.append(waited)
        uses.append(misses_by_window(walked.ids, np.zeros_like(walked.hits), window)[0])
        bound.append(belady(walked.ids, E, size))
        tick(1)
    return Counts(np.stack(misses), np.stack(waits), np.stack(uses), np.array(bound), swapped, mass)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Gate weights (T, E) float32 of all experts; what a router of another kind would give is not recorded."""
    with np.errstate(under="ignore", invalid="ignore"):     # the small vanish; of a token that is all masked none is
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float32)

