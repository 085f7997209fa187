"""The slow twins of ``walk`` and ``replay_layer``: the same rules in plain Python, to read and to test against.

Knows the same arrays and calls the policies' plain functions. Makes no attempt to be fast, and does not undo: an
exception leaves the state as it was when it was raised.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_lab.kernels.layout import TOKEN
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.sound import fault
from moe_lab.kernels.walked import Walked

plain = np.errstate(over="ignore", under="ignore", invalid="ignore")
"""As machine code computes: without a word where a number is too large, too small or none."""


@plain
def walk_slow(state: LayerState, logits: np.ndarray, weights: np.ndarray) -> Walked:
    """As :func:`moe_lab.kernels.walk.walk`, in plain Python.

    Raises:
        ValueError: a router's numbers that cannot be ranked, a NaN score or keep, or no expert to use.
    """
    T, K = logits.shape[0], state.K
    out = Walked.empty(T, K)
    for t in range(T):
        routing = state.routing.at(state.layer, state.token)
        eviction = state.eviction.at(state.layer, state.token)
        z, w, scores = logits[t], weights[t], state.scores
        if np.isnan(z).any() or np.isposinf(z).any() or not np.isfinite(w).all():
            raise ValueError(f"the router's {fault(z)}")
        state.logits[:], state.before[:] = z, state.resident
        routing.rank(z, w, K, state.resident, state.route_state, routing.vector(), scores)
        chosen = sorted(top_k_slow(scores, z, K), key=lambda e: (-w[e], e))
        if not chosen:
            raise ValueError("no expert to use")
        original = top_k_slow(z, z, K)
        everyone = sorted(range(state.E), key=lambda e: (-z[e], e))
        unused = K - len(chosen)
        out.ids[t] = chosen + [-1] * unused
        out.gates[t] = [w[e] for e in chosen] + [0.0] * unused
        out.rank[t] = [everyone.index(e) for e in chosen] + [-1] * unused
        whole = sum(float(w[e]) for e in original)
        same = set(chosen) == set(original) or whole == 0
        out.mass[t] = 1.0 if same else sum(float(w[e]) for e in chosen) / whole
        if eviction.token is not None:
            eviction.token(z, state.stats, state.evict_state, eviction.vector(), int(state.clock[0]))
        out.hits[t], out.evicted[t] = settle_slow(state, out.ids[t], out.gates[t])
        state.route_state[TOKEN] += 1
        state.evict_state[TOKEN] += 1
    return out


@plain
def replay_slow(state: LayerState, ids: np.ndarray, weights: np.ndarray | None = None,
                logits: np.ndarray | None = None, rows: int = 1) -> np.ndarray:
    """As :func:`moe_lab.kernels.replay.replay_layer`, in plain Python."""
    hits = np.zeros(ids.shape, dtype=np.bool_)
    for t in range(len(ids)):
        policy = state.eviction.at(state.layer, state.token)
        if policy.token is not None and logits is not None:
            z = logits[t].astype(np.float32)
            if np.isnan(z).any() or np.isposinf(z).any():
                raise ValueError(f"the router's {fault(z)}")
            policy.token(z, state.stats, state.evict_state, policy.vector(), int(state.clock[0]))
        hits[t], _ = settle_slow(state, ids[t], np.zeros(state.K) if weights is None else weights[t])
        if (t + 1) % rows == 0:
            state.route_state[TOKEN] += 1
            state.evict_state[TOKEN] += 1
    return hits


def top_k_slow(scores: np.ndarray, logits: np.ndarray, K: int) -> list[int]:
    """The K best of ``scores``: ties to the larger logit, then the lower id; -inf never."""
    if np.isnan(scores).any():
        raise ValueError(f"expert {int(np.argmax(np.isnan(scores)))} has the score NaN")
    best = sorted(range(len(scores)), key=lambda e: (-scores[e], -logits[e], e))
    return [e for e in best if scores[e] > -np.inf][:K]


def settle_slow(state: LayerState, ids: np.ndarray, gates: np.ndarray) -> tuple[list[bool], list[int]]:
    """Use ``ids`` (K,), -1 for none, in this order: who hit, and who left for whom."""
    policy, stats = state.eviction.at(state.layer, state.token), state.stats
    more: tuple[Any, ...] = (stats, state.evict_state, policy.vector())
    chosen = {int(e) for e in ids if e >= 0}
    hits = [e >= 0 and bool(state.resident[e]) for e in ids]
    evicted = [-1] * len(ids)
    for k, e in enumerate(int(e) for e in ids):
        if e < 0:
            continue
        state.clock[0] += 1
        now = int(state.clock[0])
        if policy.touch is not None:
            policy.touch(e, float(gates[k]), hits[k], *more, now)
        if not state.resident[e]:
            if np.count_nonzero(state.resident) >= state.C:
                evicted[k] = weakest_slow(state, chosen, now)
                state.resident[evicted[k]] = False
                if policy.left is not None:
                    policy.left(evicted[k], *more, now)
            state.resident[e] = True
            stats.arrived[e] = now
        stats.uses[e] += 1
        stats.last_use[e] = now
    return hits, evicted


def weakest_slow(state: LayerState, chosen: set[int], now: int) -> int:
    """The resident outside ``chosen`` with the lowest keep: ties to the least recently used, then the lowest id."""
    policy, stats = state.eviction.at(state.layer, state.token), state.stats
    values = {}
    for e in (int(e) for e in np.nonzero(state.resident)[0]):
        if e not in chosen:
            values[e] = float(policy.keep(e, stats, state.evict_state, policy.vector(), now))
            if np.isnan(values[e]):
                raise ValueError(f"keep of expert {e} is NaN")
    return min(values, key=lambda e: (values[e], stats.last_use[e], e))
