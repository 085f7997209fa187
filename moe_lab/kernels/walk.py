"""The walk: tokens of one layer in order, each ranked, its K experts taken, looked up and settled.

Knows ranking, residency and eviction, all through plugged-in functions. Knows no bytes. With slots per layer a
layer sees only its own tokens, so a whole text is routed as token-by-token generation would have routed it.
The slow twin is ``walk_slow``.
"""

from __future__ import annotations

import numpy as np

from moe_lab.errors import PolicyError, SettingError
from moe_lab.kernels.choose import by_weight, choose, rank_of
from moe_lab.kernels.jit import copied, jit
from moe_lab.kernels.layer import (
    FINE,
    NAN_KEEP,
    NAN_SCORE,
    NO_EXPERT,
    RANK,
    TOKEN_HOOK,
    TOP_K,
    UNSOUND,
    opened,
    remember,
    stands,
)
from moe_lab.kernels.layout import TOKEN
from moe_lab.kernels.plugin import place, raised
from moe_lab.kernels.pointers import rank_at, token_at
from moe_lab.kernels.residency import LayerState, nan_keep
from moe_lab.kernels.settle import settle
from moe_lab.kernels.sound import finite, sound, unsound
from moe_lab.kernels.walked import Walked
from moe_lab.spec import MOST_EXPERTS


def walk(state: LayerState, logits: np.ndarray, weights: np.ndarray, out: Walked | None = None) -> Walked:
    """Route T tokens through one layer and settle its residency.

    Args:
        state: changed in place; as before if an error is raised.
        logits: (T, E) float32, the router's, unmodified.
        weights: (T, E) float32, the gate weight of every expert, not renormalised.
        out: arrays of the right size to write to, instead of new ones.

    Raises:
        SettingError: arrays that do not fit, or more experts than ranks can count.
        PolicyError: a policy's function raised, gave NaN, or left no expert to use; or the router's own numbers cannot
            be ranked: a logit that is NaN or +inf, a weight that is not finite (a logit of -inf masks its expert).

    Example:
        >>> from moe_lab.routing import Original
        >>> from moe_lab.eviction import LRU
        >>> state = LayerState.new(E=4, K=2, C=2, routing=Original(), eviction=LRU())
        >>> z = np.array([[3, 2, 1, 0], [3, 0, 1, 2]], dtype=np.float32)
        >>> walked = walk(state, z, z / 6)
        >>> walked.ids.tolist(), walked.hits.tolist(), walked.evicted.tolist()
        ([[0, 1], [0, 3]], [[False, False], [True, False]], [[-1, -1], [-1, 1]])
    """
    logits, weights = _rows(logits, state.E, "logits"), _rows(weights, state.E, "weights")
    check_ranks(state)
    if logits.shape != weights.shape:
        raise SettingError(f"logits {logits.shape} and weights {weights.shape} must have the same shape")
    if out is None:
        out = Walked.empty(logits.shape[0], state.K)
    elif out.ids.shape != (logits.shape[0], state.K):
        raise SettingError(f"out has room for {out.ids.shape}, wanted ({logits.shape[0]}, {state.K})")
    if state.steady:
        _walk(state, logits, weights, out, 0)
        return out
    room = out
    state.in_stretches(logits.shape[0], lambda first, end: _walk(
        state, logits[first:end], weights[first:end], Walked(*(array[first:end] for array in room)), first))
    return out


def check_ranks(state: LayerState) -> None:
    """Raise a SettingError for more experts than the ranks of ``Walked`` can count."""
    if state.E > MOST_EXPERTS:
        raise SettingError(f"a layer of {state.E:,} experts cannot be routed: {MOST_EXPERTS:,} are possible")


def _walk(state: LayerState, logits: np.ndarray, weights: np.ndarray, out: Walked, first: int) -> None:
    """Walk tokens in which no parameter changes, from token ``first`` of the whole walk on."""
    try:
        code = walk_kernel(state.block, logits, weights, *out)
    except Exception as error:
        raise broken(state, error, logits, weights) from error
    if code != FINE:
        raise failed(state, code, logits, first)


def broken(state: LayerState, error: Exception, logits: np.ndarray, weights: np.ndarray) -> PolicyError:
    """What to raise for a policy's exception in ``walk_kernel``, whose changes are taken back."""
    state.undo()
    upto = int(state.report[0]) + 1
    return raised(error, (type(state.routing), type(state.eviction)),
                  lambda: _again(state, logits[:upto], weights[:upto]))


def forced(ids: np.ndarray, gates: np.ndarray, E: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and weights (..., E) float32 under which the original routing chooses exactly ``ids``.

    For routes that are known already and only have to be settled: ``ids`` (..., K) in falling order of their
    ``gates`` (..., K), -1 where fewer than K were used.

    Example:
        >>> forced(np.array([[2, 0]]), np.array([[0.7, 0.1]], dtype=np.float32), E=3)[0].tolist()
        [[1.0, -inf, 2.0]]
    """
    used = np.nonzero(ids >= 0)
    at = (*used[:-1], ids[used])
    logits = np.full((*ids.shape[:-1], E), -np.inf, dtype=np.float32)
    weights = np.zeros_like(logits)
    logits[at], weights[at] = ids.shape[-1] - used[-1], gates[used]
    return logits, weights


_F32 = np.dtype(np.float32)


def _rows(rows: np.ndarray, E: int, what: str) -> np.ndarray:
    """(T, E) float32 as the kernel wants it: contiguous, writable; copied only where it is not."""
    if rows.ndim != 2 or rows.shape[1] != E:
        raise SettingError(f"{what} must be (tokens, {E}), not {rows.shape}")
    flags = rows.flags
    if rows.dtype is _F32 and flags.c_contiguous and flags.writeable and flags.aligned:
        return rows
    return np.require(rows, _F32, ["C", "A", "W", "O"])


def _again(state: LayerState, logits: np.ndarray, weights: np.ndarray) -> None:
    """The walk by the plain functions on a copy, to find the line of an error."""
    from moe_lab.kernels.walk_slow import walk_slow

    walk_slow(state.copy(), logits, weights)


def failed(state: LayerState, code: int, logits: np.ndarray, first: int = 0) -> PolicyError:
    """What to raise for a ``code`` of ``walk_kernel`` other than FINE, whose changes are taken back; ``first``: the
    walk's token that it began with."""
    state.undo()
    token, expert = (int(x) for x in state.report)
    at = f"at token {first + token} of this walk, layer {state.layer}"
    policy = state.routing
    if code == NAN_KEEP:
        return nan_keep(state, expert)
    if code == UNSOUND or (logits[token] == -np.inf).all():
        return unsound(logits[token], at)
    if code == NO_EXPERT:
        return PolicyError(f"policy {policy.name!r}: {place(policy.rank)} left no expert to use {at}: every score is "
                           "-inf; leave at least one finite. Nothing was changed.")
    return PolicyError(f"policy {policy.name!r}: {place(policy.rank)} gave expert {expert} the score NaN {at}. "
                       "Nothing was changed.")


@jit
def walk_kernel(block: np.ndarray, logits: np.ndarray, weights: np.ndarray, ids: np.ndarray, gates: np.ndarray,
                hits: np.ndarray, evicted: np.ndarray, rank: np.ndarray, mass: np.ndarray) -> int:
    """Walk T tokens; the arrays after ``block`` are those of ``walk``. Returns FINE or what went wrong."""
    remember(block)
    layer = opened(block)
    K, held = block[TOP_K], np.sum(layer.resident)
    rank_function, head = rank_at(block[RANK]), np.empty(block[TOP_K], np.int32)
    for t in range(logits.shape[0]):
        layer.report[0] = t
        z, w, chosen = logits[t], weights[t], ids[t]
        if not (sound(z) and finite(w)):
            return UNSOUND
        if t == logits.shape[0] - 1:
            copied(z, layer.logits)
            copied(layer.resident, layer.before)
        rank_function(z, w, K, layer.resident, layer.routing_state, layer.routing_params, layer.scores)
        n = choose(layer.scores, z, chosen, layer.keys)
        if n <= 0:
            layer.report[1] = -1 - n
            return NO_EXPERT if n == 0 else NAN_SCORE
        by_weight(chosen, w, n)
        mass[t] = describe(chosen, n, z, w, gates[t], rank[t], head, layer.keys)
        if block[TOKEN_HOOK]:
            token_at(block[TOKEN_HOOK])(z, layer.stats, layer.eviction_state, layer.eviction_params, layer.clock[0])
        held = settle(block, layer, held, chosen, gates[t], hits[t], evicted[t])
        if held < 0:
            return NAN_KEEP
        layer.routing_state[TOKEN] += 1
        layer.eviction_state[TOKEN] += 1
    stands(block)
    return FINE


@jit(cache=False)
def describe(ids: np.ndarray, n: int, logits: np.ndarray, weights: np.ndarray, gates: np.ndarray, rank: np.ndarray,
             head: np.ndarray, keys: np.ndarray) -> float:
    """Fill gates and ranks of the ``n`` chosen, blank the other places; returns the share of gate mass kept."""
    kept, swapped = 0.0, n < ids.size
    for k in range(n):
        gates[k] = weights[ids[k]]
        rank[k] = rank_of(ids[k], logits)
        kept += gates[k]
        swapped |= rank[k] >= ids.size
    for k in range(n, ids.size):
        ids[k], gates[k], rank[k] = -1, 0.0, -1
    if not swapped:
        return 1.0
    whole = 0.0
    for k in range(choose(logits, logits, head, keys)):
        whole += weights[head[k]]
    return kept / whole if whole != 0 else 1.0
