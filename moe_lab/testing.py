"""The contract of a policy, run on one's own: what holds, and in words what does not.

Knows what every policy must keep whatever it decides: that it compiles, that machine code and plain function agree,
that it changes nothing but its own state, that its claims (``lossy``, ``needs``) are true. Refuses to know whether a
policy is any good: for that there are replay and sweeps.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moe_lab.errors import PolicyError
from moe_lab.eviction import EVICTION, LRU, EvictionPolicy
from moe_lab.kernels.layout import OWN
from moe_lab.kernels.replay import replay_layer
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walk import Walked, walk
from moe_lab.kernels.walk_slow import replay_slow, walk_slow
from moe_lab.policy import Policy, resolve
from moe_lab.routing import ROUTING, CachePrior, Original, RoutingPolicy

__all__ = ["Checked", "check_policy"]

SHAPES = ((16, 4, 8), (12, 1, 3), (10, 5, 5), (8, 3, 8))
"""(E, K, C) of the layers that a policy is tried on."""
TOKENS = 48


@dataclass(frozen=True)
class Checked:
    """What :func:`check_policy` found to hold."""

    policy: Policy
    checks: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    """What is no fault, but worth knowing."""

    def __repr__(self) -> str:
        head = f"{self.policy!r}: {len(self.checks)} checks hold"
        return "\n".join([head, *(f"  note: {note}" for note in self.notes)])


def check_policy(policy: str | Policy | type[Policy]) -> Checked:
    """Run the contract of its kind on a policy, with its own parameters and at the ends of their ranges.

    Args:
        policy: a name, a policy or its class (then its defaults).

    Raises:
        PolicyError: what is wrong, one finding a line, with the function and line where one is to blame.

    Example:
        >>> check_policy("clock")
        Clock(): 9 checks hold
    """
    policy = _resolved(policy)
    checks = _routing_checks() if policy.kind == "routing" else _eviction_checks()
    findings: list[str] = []
    for at in policy.at(0), *_extremes(policy.at(0)):
        for name, check in checks.items():
            try:
                said = check(at)
            except PolicyError as error:
                said = str(error)
            except Exception as error:      # a slow twin fails with whatever the policy's function raises
                said = f"raised {type(error).__name__}: {error}"
            if said:
                findings.append(f"{name}: {said}" + ("" if at == policy else f" [with {at!r}]"))
        if findings:
            break       # one setting that fails says enough
    if findings:
        lines = "\n".join(f"- {finding}" for finding in dict.fromkeys(findings))
        raise PolicyError(f"policy {policy.name!r} breaks its contract:\n{lines}")
    return Checked(policy, tuple(checks), tuple(_notes(policy)))


def _resolved(policy: Any) -> Policy:
    if isinstance(policy, str):
        return ROUTING[policy]() if policy in ROUTING else resolve(policy, EVICTION, "eviction")
    kind = getattr(policy, "kind", "")
    if kind == "routing":
        return resolve(policy, ROUTING, "routing")
    return resolve(policy, EVICTION, "eviction")


def _extremes(policy: Policy) -> Iterator[Policy]:
    """The policy with each parameter at either end of its range."""
    for key, parameter in policy.parameters().items():
        for value in dict.fromkeys((parameter.low, parameter.high, *parameter.words.values())):
            yield policy.replace(**{key: value})


def _notes(policy: Policy) -> Iterator[str]:
    for key, parameter in policy.parameters().items():
        if not parameter.doc:
            yield f"parameter {key!r} has no doc; a line on it stands beside its slider"
    if not vars(type(policy)).get("__doc__"):
        yield "no docstring; its first line is shown where a policy is chosen"
    try:
        pickle.dumps(policy)
    except Exception:
        yield "it cannot be pickled, so other processes cannot use it; define it in a module"


# --- the layers it is tried on -------------------------------------------------------------------------


def _rng() -> np.random.Generator:
    return np.random.default_rng(20241129)


def _logits(rng: np.random.Generator, E: int, tokens: int = TOKENS) -> np.ndarray:
    return (rng.standard_normal((tokens, E)) + rng.standard_normal(E)).astype(np.float32)


def _weights(logits: np.ndarray) -> np.ndarray:
    mass = np.exp(logits - logits.max(1, keepdims=True))
    return (mass / mass.sum(1, keepdims=True)).astype(np.float32)


def _ids(rng: np.random.Generator, E: int, K: int, tokens: int = TOKENS) -> np.ndarray:
    return np.argsort(-_logits(rng, E, tokens), axis=1)[:, :K].astype(np.int32)


def _memory(state: LayerState) -> dict[str, bytes]:
    arrays = {"resident": state.resident, "clock": state.clock, "the routing's state": state.route_state,
              "the eviction's state": state.evict_state, **{f"stats.{key}": value
                                                            for key, value in state.stats._asdict().items()}}
    return {key: array.tobytes() for key, array in arrays.items()}


def _differing(one: Walked, other: Walked) -> str:
    for name in ("ids", "hits", "evicted", "rank"):
        differ = np.nonzero((getattr(one, name) != getattr(other, name)).reshape(len(one.ids), -1).any(1))[0]
        if differ.size:
            at = int(differ[0])
            return f"{name} at token {at}: {getattr(one, name)[at].tolist()}, not {getattr(other, name)[at].tolist()}"
    return ""


# --- routing -------------------------------------------------------------------------------------------


def _routing_checks() -> dict[str, Callable[[Any], str]]:
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
        logits = _logits(_rng(), shape[0])
        walk(_layer(policy, *shape), logits, _weights(logits))
    return ""


def _routing_twins(policy: RoutingPolicy) -> str:
    logits = _logits(_rng(), 16)
    one = walk(_layer(policy, 16, 4, 8), logits, _weights(logits))
    with np.errstate(all="ignore"):
        other = walk_slow(_layer(policy, 16, 4, 8), logits, _weights(logits))
    said = _differing(one, other)
    return said and (f"{said} by the plain function; globals are frozen when it is compiled, and numbers must not "
                     "depend on what only Python can do")


def _routing_repeats(policy: RoutingPolicy) -> str:
    logits = _logits(_rng(), 16)
    runs = [walk(_layer(policy, 16, 4, 8), logits, _weights(logits)) for _ in range(2)]
    said = _differing(runs[1], runs[0])
    return said and f"{said} the first time; draw with ml.eviction.noise(seed, layer, draw, item), not with a generator"


def _routing_pieces(policy: RoutingPolicy) -> str:
    logits = _logits(_rng(), 16)
    weights, state = _weights(logits), _layer(policy, 16, 4, 8)
    whole = walk(_layer(policy, 16, 4, 8), logits, weights)
    pieces = [walk(state, logits[t : t + 7], weights[t : t + 7]) for t in range(0, TOKENS, 7)]
    said = _differing(Walked(*(np.concatenate(parts) for parts in zip(*pieces, strict=True))), whole)
    return said and f"{said} in one; keep what you remember in state[OWN:], of which state_size floats are yours"


def _routing_leaves_alone(policy: RoutingPolicy) -> str:
    rng = _rng()
    state = _layer(policy, 16, 4, 8)
    for z in _logits(rng, 16, 12):
        w, resident, params = _weights(z[None])[0], rng.random(16) < 0.5, policy.vector()
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
    z = _logits(_rng(), 16, 1)[0]
    found = []
    for fill in (0.0, 1e6):
        scores, state = np.full(16, fill, np.float32), _layer(policy, 16, 4, 8).route_state
        with np.errstate(all="ignore"):
            policy.rank(z, _weights(z[None])[0], 4, np.arange(16) % 2 == 0, state, policy.vector(), scores)
        found.append(scores)
    wrong = np.nonzero(found[0] != found[1])[0]
    return f"rank left scores[{int(wrong[0])}] as it was; begin with scores[:] = logits" if wrong.size else ""


def _masked(policy: RoutingPolicy) -> str:
    logits = _logits(_rng(), 16)
    logits[:, ::2] = -np.inf
    state = _layer(policy, 16, 4, 8)
    state.fill([0, 2, 4])
    ids = walk(state, logits, _weights(logits)).ids
    wrong = np.nonzero((ids >= 0) & (ids % 2 == 0))
    if not wrong[0].size:
        return ""
    return (f"expert {int(ids[wrong][0])}, whose logit is -inf, was used at token {int(wrong[0][0])}; keep the score "
            "of such an expert at -inf")


def _as_lossy(policy: RoutingPolicy) -> str:
    if policy.lossy:
        return ""
    for E, K, C in SHAPES:
        logits = _logits(_rng(), E)
        said = _differing(walk(_layer(policy, E, K, C), logits, _weights(logits)),
                          walk(_layer(Original(), E, K, C), logits, _weights(logits)))
        if said:
            return f"lossy is False, yet {said} as the model's router chooses; let lossy be True"
    return ""


def _odd_layers(policy: RoutingPolicy) -> str:
    for E, K, C in ((1, 1, 1), (2, 2, 2), (6, 1, 6)):
        logits = _logits(_rng(), E)
        state = _layer(policy, E, K, C)
        state.fill(range(C))
        walk(state, logits, _weights(logits))
    return ""


# --- eviction ------------------------------------------------------------------------------------------


def _eviction_checks() -> dict[str, Callable[[Any], str]]:
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
    logits = _logits(_rng(), shape[0], tokens)
    return walk(_evict_layer(policy, *shape), logits, _weights(logits))


def _evicts(policy: EvictionPolicy) -> str:
    for shape in SHAPES:
        _evict_walk(policy, shape)
    return ""


def _eviction_twins(policy: EvictionPolicy) -> str:
    logits = _logits(_rng(), 16)
    fast, slow = _evict_layer(policy, 16, 4, 7), _evict_layer(policy, 16, 4, 7)
    one = walk(fast, logits, _weights(logits))
    with np.errstate(all="ignore"):
        other = walk_slow(slow, logits, _weights(logits))
    said = _differing(one, other)
    return said and (f"{said} by the plain functions; globals are frozen when they are compiled, and numbers must not "
                     "depend on what only Python can do")


def _eviction_repeats(policy: EvictionPolicy) -> str:
    said = _differing(_evict_walk(policy, (16, 4, 7)), _evict_walk(policy, (16, 4, 7)))
    return said and f"{said} the first time; draw with ml.eviction.noise(seed, layer, draw, item), not with a generator"


def _eviction_pieces(policy: EvictionPolicy) -> str:
    logits = _logits(_rng(), 16)
    weights, state = _weights(logits), _evict_layer(policy, 16, 4, 7)
    pieces = [walk(state, logits[t : t + 7], weights[t : t + 7]) for t in range(0, TOKENS, 7)]
    said = _differing(Walked(*(np.concatenate(parts) for parts in zip(*pieces, strict=True))),
                      _evict_walk(policy, (16, 4, 7)))
    return said and f"{said} in one; keep what you remember in stats.own and state[OWN:]"


def _keep_is_pure(policy: EvictionPolicy) -> str:
    logits = _logits(_rng(), 16)
    state = _evict_layer(policy, 16, 4, 7)
    walk(state, logits, _weights(logits))
    before, now = _memory(state), int(state.clock[0]) + 1
    for e in np.nonzero(state.resident)[0]:
        with np.errstate(all="ignore"):
            first, again = (float(policy.keep(int(e), state.stats, state.evict_state, policy.vector(), now))
                            for _ in range(2))
        if first != again:
            return f"keep of expert {e} is {first:g}, then {again:g}, with nothing between"
    changed = [key for key, value in _memory(state).items() if value != before[key]]
    return f"keep changed {changed[0]}; only touch, left and token may write" if changed else ""


def _hooks_stay_home(policy: EvictionPolicy) -> str:
    logits = _logits(_rng(), 16)
    state = _evict_layer(policy, 16, 4, 7)
    walk(state, logits, _weights(logits))
    now, more = int(state.clock[0]) + 1, (state.stats, state.evict_state, policy.vector())
    gone, here = int(np.nonzero(~state.resident)[0][0]), int(np.nonzero(state.resident)[0][0])
    calls = {"token": lambda hook: hook(logits[0].copy(), *more, now),
             "touch": lambda hook: (hook(here, 0.5, True, *more, now), hook(gone, 0.5, False, *more, now)),
             "left": lambda hook: hook(here, *more, now)}
    for name, call in calls.items():
        hook, head, before = getattr(policy, name), state.evict_state[:OWN].copy(), _memory(state)
        if hook is None:
            continue
        with np.errstate(all="ignore"):
            call(hook)
        changed = [key for key, value in _memory(state).items() if value != before[key]
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
    rng = _rng()
    ids, found = _ids(rng, 16, 4, 200), []
    for weights in (None, rng.random(ids.shape).astype(np.float32), np.ones(ids.shape, np.float32)):
        state = LayerState.new(16, 4, 7, Original(), policy)
        found.append((replay_layer(ids, weights, state).tobytes(), state.stats.own.tobytes()))
    return "" if len(set(found)) == 1 else ("touch reads the gate weight, which not every trace holds; say "
                                            "needs={'weights'}")


def _upheaval(policy: EvictionPolicy) -> str:
    """Residents it never met, a resize, a failed load, a filled start: none may break it."""
    logits = _logits(_rng(), 16, 120)
    weights, at = _weights(logits), iter(range(0, 120, 20))

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
            ids = _ids(_rng(), shape[0], shape[1])
            fast, slow = (LayerState.new(*shape, Original(), policy) for _ in range(2))
            with np.errstate(all="ignore"):
                if (replay_layer(ids, None, fast) != replay_slow(slow, ids)).any():
                    return f"a replay with E, K, C = {shape} hits otherwise than by the plain functions"
    return ""
