"""What an eviction policy must keep, question by question.

Knows the walk, the replay and their slow twins. Refuses to judge: each check says what is wrong, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moe_lab.eviction import LRU, EvictionPolicy
from moe_lab.kernels.layout import OWN
from moe_lab.kernels.replay import replay_layer
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walk import walk
from moe_lab.kernels.walk_slow import replay_slow, walk_slow
from moe_lab.kernels.walked import Walked
from moe_lab.routing import CachePrior, Original
from moe_lab.testing.layers import SHAPES, TOKENS, differing, ids_of, logits_of, memory, rng, weights_of


def eviction_checks() -> dict[str, Callable[[Any], str]]:
    """What an eviction policy is asked, by name; each answers in words what is wrong, or nothing."""
    return {
        "compiles and walks": _evicts,
        "machine code and plain functions agree": _eviction_twins,
        "repeats itself": _eviction_repeats,
        "a text in pieces is settled as in one": _eviction_pieces,
        "keep changes nothing": _keep_is_pure,
        "hooks change nothing but their own": _hooks_stay_home,
        "needs what it says": _as_needy,
        "bears a change of policy, slots and residents": _upheaval,
        "few experts, and a cache of all": _odd_evictions,
    }


def _evict_layer(eviction: EvictionPolicy, E: int, K: int, C: int) -> LayerState:
    return LayerState.new(E, K, C, CachePrior(penalty=0.1), eviction, layer=1, seed=7)


def _evict_walk(policy: EvictionPolicy, shape: tuple[int, int, int], tokens: int = TOKENS) -> Walked:
    logits = logits_of(rng(), shape[0], tokens)
    return walk(_evict_layer(policy, *shape), logits, weights_of(logits))


def _evicts(policy: EvictionPolicy) -> str:
    for shape in SHAPES:
        _evict_walk(policy, shape)
    return ""


def _eviction_twins(policy: EvictionPolicy) -> str:
    logits = logits_of(rng(), 16)
    fast, slow = _evict_layer(policy, 16, 4, 7), _evict_layer(policy, 16, 4, 7)
    one = walk(fast, logits, weights_of(logits))
    with np.errstate(all="ignore"):
        other = walk_slow(slow, logits, weights_of(logits))
    said = differing(one, other)
    return said and (f"{said} by the plain functions; globals are frozen when they are compiled, and numbers must not "
                     "depend on what only Python can do")


def _eviction_repeats(policy: EvictionPolicy) -> str:
    said = differing(_evict_walk(policy, (16, 4, 7)), _evict_walk(policy, (16, 4, 7)))
    return said and f"{said} the first time; draw with ml.eviction.noise(seed, layer, draw, item), not with a generator"


def _eviction_pieces(policy: EvictionPolicy) -> str:
    logits = logits_of(rng(), 16)
    weights, state = weights_of(logits), _evict_layer(policy, 16, 4, 7)
    pieces = [walk(state, logits[t : t + 7], weights[t : t + 7]) for t in range(0, TOKENS, 7)]
    said = differing(Walked(*(np.concatenate(parts) for parts in zip(*pieces, strict=True))),
                      _evict_walk(policy, (16, 4, 7)))
    return said and f"{said} in one; keep what you remember in stats.own and state[OWN:]"


def _keep_is_pure(policy: EvictionPolicy) -> str:
    logits = logits_of(rng(), 16)
    state = _evict_layer(policy, 16, 4, 7)
    walk(state, logits, weights_of(logits))
    before, now = memory(state), int(state.clock[0]) + 1
    for e in np.nonzero(state.resident)[0]:
        with np.errstate(all="ignore"):
            first, again = (float(policy.keep(int(e), state.stats, state.evict_state, policy.vector(), now))
                            for _ in range(2))
        if first != again:
            return f"keep of expert {e} is {first:g}, then {again:g}, with nothing between"
    changed = [key for key, value in memory(state).items() if value != before[key]]
    return f"keep changed {changed[0]}; only touch, left and token may write" if changed else ""


def _hooks_stay_home(policy: EvictionPolicy) -> str:
    logits = logits_of(rng(), 16)
    state = _evict_layer(policy, 16, 4, 7)
    walk(state, logits, weights_of(logits))
    now, more = int(state.clock[0]) + 1, (state.stats, state.evict_state, policy.vector())
    gone, here = int(np.nonzero(~state.resident)[0][0]), int(np.nonzero(state.resident)[0][0])
    calls: dict[str, Callable[[Any], Any]] = {
        "token": lambda hook: hook(logits[0].copy(), *more, now),
        "touch": lambda hook: (hook(here, 0.5, True, *more, now), hook(gone, 0.5, False, *more, now)),
        "left": lambda hook: hook(here, *more, now)}
    for name, call in calls.items():
        hook, head, before = getattr(policy, name), state.evict_state[:OWN].copy(), memory(state)
        if hook is None:
            continue
        with np.errstate(all="ignore"):
            call(hook)
        changed = [key for key, value in memory(state).items() if value != before[key]
                   and key not in ("stats.own", "the eviction's state")]
        if not np.array_equal(head, state.evict_state[:OWN]):
            changed.append(f"the head of state (places below OWN = {OWN})")
        if changed:
            return f"{name} changed {changed[0]}; it may write to stats.own and to its own part of state only"
    return ""


def _as_needy(policy: EvictionPolicy) -> str:
    """A touch that reads weights without saying so would be replayed with zeros."""
    if policy.needs:
        return ""
    draws = rng()
    ids, found = ids_of(draws, 16, 4, 200), []
    for weights in (None, draws.random(ids.shape).astype(np.float32), np.ones(ids.shape, np.float32)):
        state = LayerState.new(16, 4, 7, Original(), policy)
        found.append((replay_layer(ids, weights, state).tobytes(), state.stats.own.tobytes()))
    return "" if len(set(found)) == 1 else ("touch reads the gate weight, which not every trace holds; say "
                                            "needs={'weights'}")


def _upheaval(policy: EvictionPolicy) -> str:
    """Residents it never met, a resize, a failed load, a filled start: none may break it."""
    logits = logits_of(rng(), 16, 120)
    weights, at = weights_of(logits), iter(range(0, 120, 20))

    def some() -> None:
        t = next(at)
        walk(state, logits[t : t + 20], weights[t : t + 20])

    state = LayerState.new(16, 4, 8, Original(), LRU())
    some()
    state.set_eviction(policy)
    some()
    for C in (5, 12):
        state.resize(C)
        some()
    state.drop(int(np.nonzero(state.resident)[0][0]))
    some()
    state.reset()
    state.fill(range(6))
    some()
    return ""


def _odd_evictions(policy: EvictionPolicy) -> str:
    for shape in ((1, 1, 1), (2, 2, 2), (6, 1, 6), (6, 1, 1)):
        _evict_walk(policy, shape)
        if not policy.needs:
            ids = ids_of(rng(), shape[0], shape[1])
            fast, slow = (LayerState.new(*shape, Original(), policy) for _ in range(2))
            with np.errstate(all="ignore"):
                if (replay_layer(ids, None, fast) != replay_slow(slow, ids)).any():
                    return f"a replay with E, K, C = {shape} hits otherwise than by the plain functions"
    return ""
