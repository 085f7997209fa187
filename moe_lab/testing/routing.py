"""What a routing policy must keep, question by question.

Knows the walk and its slow twin. Refuses to judge: each check says what is wrong, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moe_lab.eviction import LRU
from moe_lab.kernels.layout import OWN
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walk import walk
from moe_lab.kernels.walk_slow import walk_slow
from moe_lab.kernels.walked import Walked
from moe_lab.routing import Original, RoutingPolicy
from moe_lab.testing.layers import SHAPES, TOKENS, differing, logits_of, rng, weights_of


def routing_checks() -> dict[str, Callable[[Any], str]]:
    """What a routing policy is asked, by name; each answers in words what is wrong, or nothing."""
    return {
        "compiles and walks": _walks,
        "machine code and plain function agree": _routing_twins,
        "repeats itself": _routing_repeats,
        "a text in pieces is routed as in one": _routing_pieces,
        "changes nothing but its own state": _routing_leaves_alone,
        "does not read its old scores": _routing_fills_scores,
        "masked experts are never used": _masked,
        "as lossy as it says": _as_lossy,
        "few experts, and a cache of all": _odd_layers,
    }


def _layer(routing: RoutingPolicy, E: int, K: int, C: int) -> LayerState:
    return LayerState.new(E, K, C, routing, LRU(), layer=1, seed=7)


def _walks(policy: RoutingPolicy) -> str:
    for shape in SHAPES:
        logits = logits_of(rng(), shape[0])
        walk(_layer(policy, *shape), logits, weights_of(logits))
    return ""


def _routing_twins(policy: RoutingPolicy) -> str:
    logits = logits_of(rng(), 16)
    one = walk(_layer(policy, 16, 4, 8), logits, weights_of(logits))
    with np.errstate(all="ignore"):
        other = walk_slow(_layer(policy, 16, 4, 8), logits, weights_of(logits))
    said = differing(one, other)
    return said and (f"{said} by the plain function; globals are frozen when it is compiled, and numbers must not "
                     "depend on what only Python can do")


def _routing_repeats(policy: RoutingPolicy) -> str:
    logits = logits_of(rng(), 16)
    runs = [walk(_layer(policy, 16, 4, 8), logits, weights_of(logits)) for _ in range(2)]
    said = differing(runs[1], runs[0])
    return said and f"{said} the first time; draw with ml.eviction.noise(seed, layer, draw, item), not with a generator"


def _routing_pieces(policy: RoutingPolicy) -> str:
    logits = logits_of(rng(), 16)
    weights, state = weights_of(logits), _layer(policy, 16, 4, 8)
    whole = walk(_layer(policy, 16, 4, 8), logits, weights)
    pieces = [walk(state, logits[t : t + 7], weights[t : t + 7]) for t in range(0, TOKENS, 7)]
    said = differing(Walked(*(np.concatenate(parts) for parts in zip(*pieces, strict=True))), whole)
    return said and f"{said} in one; keep what you remember in state[OWN:], of which state_size floats are yours"


def _routing_leaves_alone(policy: RoutingPolicy) -> str:
    draws = rng()
    state = _layer(policy, 16, 4, 8)
    for z in logits_of(draws, 16, 12):
        w, resident, params = weights_of(z[None])[0], draws.random(16) < 0.5, policy.vector()
        given = {"logits": z, "weights": w, "resident": resident, "params": params,
                 f"the head of state (places below OWN = {OWN})": state.route_state[:OWN]}
        before = {key: value.copy() for key, value in given.items()}
        with np.errstate(all="ignore"):
            policy.rank(z, w, 4, resident, state.route_state, params, np.zeros(16, np.float32))
        for key, value in given.items():
            if not np.array_equal(value, before[key]):
                return f"rank changed {key}; it may write to scores and to its own part of state only"
    return ""


def _routing_fills_scores(policy: RoutingPolicy) -> str:
    z = logits_of(rng(), 16, 1)[0]
    found = []
    for fill in (0.0, 1e6):
        scores, state = np.full(16, fill, np.float32), _layer(policy, 16, 4, 8).route_state
        with np.errstate(all="ignore"):
            policy.rank(z, weights_of(z[None])[0], 4, np.arange(16) % 2 == 0, state, policy.vector(), scores)
        found.append(scores)
    wrong = np.nonzero(found[0] != found[1])[0]
    return f"rank left scores[{int(wrong[0])}] as it was; begin with scores[:] = logits" if wrong.size else ""


def _masked(policy: RoutingPolicy) -> str:
    logits = logits_of(rng(), 16)
    logits[:, ::2] = -np.inf
    state = _layer(policy, 16, 4, 8)
    state.fill([0, 2, 4])
    ids = walk(state, logits, weights_of(logits)).ids
    wrong = np.nonzero((ids >= 0) & (ids % 2 == 0))
    if not wrong[0].size:
        return ""
    return (f"expert {int(ids[wrong][0])}, whose logit is -inf, was used at token {int(wrong[0][0])}; keep the score "
            "of such an expert at -inf")


def _as_lossy(policy: RoutingPolicy) -> str:
    if policy.lossy:
        return ""
    for E, K, C in SHAPES:
        logits = logits_of(rng(), E)
        said = differing(walk(_layer(policy, E, K, C), logits, weights_of(logits)),
                          walk(_layer(Original(), E, K, C), logits, weights_of(logits)))
        if said:
            return f"lossy is False, yet {said} as the model's router chooses; let lossy be True"
    return ""


def _odd_layers(policy: RoutingPolicy) -> str:
    for E, K, C in ((1, 1, 1), (2, 2, 2), (6, 1, 6)):
        logits = logits_of(rng(), E)
        state = _layer(policy, E, K, C)
        state.fill(range(C))
        walk(state, logits, weights_of(logits))
    return ""
