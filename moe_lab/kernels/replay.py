"""Replay: the experts of recorded tokens settled by an eviction policy, one layer at a time.

Knows chosen ids and residency. What was routed stays as it was; logits are only shown to eviction policies that look
at them. The very same settling as in the walk; the slow twin is ``walk_slow.replay_slow``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_lab.errors import PolicyError, SettingError
from moe_lab.kernels.jit import jit
from moe_lab.kernels.layer import FINE, NAN_KEEP, TOKEN_HOOK, UNSOUND, opened, remember, stands
from moe_lab.kernels.layout import TOKEN
from moe_lab.kernels.plugin import raised
from moe_lab.kernels.pointers import token_at
from moe_lab.kernels.recorded import recorded
from moe_lab.kernels.residency import LayerState, nan_keep
from moe_lab.kernels.settle import settle
from moe_lab.kernels.sound import sound, unsound

if TYPE_CHECKING:
    from moe_lab.eviction import EvictionPolicy


def replay_layer(ids: np.ndarray, weights: np.ndarray | None, state: LayerState,
                 logits: np.ndarray | None = None, rows: int = 1) -> np.ndarray:
    """Settle T recorded tokens of one layer; hits (T, K) bool.

    Args:
        ids: (T, K) int32, distinct in a row, -1 for none; experts are touched in the order given.
        weights: (T, K) float32 or None, if no policy asks for them.
        state: changed in place; as before if an error is raised.
        logits: (T, E) as the router gave them, or None, if no policy asks for them.
        rows: how many rows of ``ids`` are one token, where one pool serves several layers in turn.

    Raises:
        PolicyError: a policy that needs what is not here, or whose function raised or gave NaN; or logits that cannot
            be ranked (NaN, +inf), where a policy looks at them.
        SettingError: arrays that do not fit, or ids that are no experts of the layer or stand twice in a row.

    Example:
        >>> from moe_lab.eviction import LRU
        >>> from moe_lab.routing import Original
        >>> state = LayerState.new(E=4, K=2, C=2, routing=Original(), eviction=LRU())
        >>> replay_layer(np.array([[0, 1], [1, 2], [0, 2]], dtype=np.int32), None, state).tolist()
        [[False, False], [True, False], [False, True]]
    """
    lacking = lacks(state.eviction, weights is not None, logits is not None)
    if lacking:
        raise PolicyError(f"policy {state.eviction.name!r} needs {lacking}, which this trace does not hold; run it in "
                          "an engine, or replay a trace that has them")
    if ids.ndim != 2 or ids.shape[1] != state.K:
        raise SettingError(f"ids must be (tokens, {state.K}), not {ids.shape}")
    if rows < 1:
        raise SettingError(f"rows={rows} of one token must be 1 or more")
    ids = recorded(ids, state.E)
    gates = _rows(weights, ids.shape, "weights")
    z = _rows(logits if "logits" in state.eviction.needs else None, (len(ids), state.E), "logits")
    hits = np.empty(ids.shape, np.bool_)

    def settle_stretch(first: int, end: int) -> None:
        at = slice(first * rows, end * rows)
        w, logits_here = (each[at] if len(each) == len(ids) else each for each in (gates, z))
        _replay(state, ids[at], w, logits_here, hits[at], rows, first)

    state.in_stretches(-(-len(ids) // rows), settle_stretch)
    return hits


def _replay(state: LayerState, ids: np.ndarray, gates: np.ndarray, logits: np.ndarray, hits: np.ndarray,
            rows: int, first: int) -> None:
    """Settle tokens in which no parameter changes, from token ``first`` of the whole replay on."""
    try:
        code = replay_kernel(state.block, ids, gates, logits, hits, rows)
    except Exception as error:
        state.undo()
        upto = int(state.report[0]) + 1
        raise raised(error, (type(state.eviction),),
                     lambda: _again(state, ids[:upto], gates, logits, rows)) from error
    if code != FINE:
        row, expert = (int(x) for x in state.report)
        state.undo()
        if code == UNSOUND:
            raise unsound(logits[row], f"at token {first + row // rows} of this replay, layer {state.layer}")
        raise nan_keep(state, expert)


def lacks(policy: EvictionPolicy, weights: bool, logits: bool) -> str:
    """What an eviction policy needs of a trace that has only ids, and perhaps weights and logits; "" for nothing."""
    here = {name for name, there in (("weights", weights), ("logits", logits)) if there}
    return " and ".join(sorted(policy.needs - here))


def _rows(values: np.ndarray | None, shape: tuple[int, int], what: str) -> np.ndarray:
    """float32 rows for the kernel; one row of zeros, for all tokens, where there are none."""
    if values is None:
        return np.zeros((1, shape[1]), np.float32)
    if values.shape != shape:
        raise SettingError(f"{what} {values.shape} must have the shape {shape}, to fit the ids")
    return np.require(values, np.float32, ["C", "A", "W"])


def _again(state: LayerState, ids: np.ndarray, gates: np.ndarray, logits: np.ndarray, rows: int) -> None:
    from moe_lab.kernels.walk_slow import replay_slow

    replay_slow(state.copy(), ids, np.resize(gates, ids.shape), np.resize(logits, (len(ids), state.E)), rows)


@jit
def replay_kernel(block: np.ndarray, ids: np.ndarray, gates: np.ndarray, logits: np.ndarray, hits: np.ndarray,
                  rows: int) -> int:
    """Settle T rows. ``gates`` (T, K), ``logits`` (T, E), or one row of zeros for all. Returns FINE or NAN_KEEP."""
    remember(block)
    layer = opened(block)
    held, evicted = np.sum(layer.resident), np.empty(ids.shape[1], np.int32)
    gate_step, logit_step = gates.shape[0] >= ids.shape[0], logits.shape[0] >= ids.shape[0]
    for t in range(ids.shape[0]):
        layer.report[0] = t
        if block[TOKEN_HOOK]:
            z = logits[t * logit_step]
            if not sound(z):
                return UNSOUND
            token_at(block[TOKEN_HOOK])(z, layer.stats, layer.eviction_state, layer.eviction_params, layer.clock[0])
        held = settle(block, layer, held, ids[t], gates[t * gate_step], hits[t], evicted)
        if held < 0:
            return NAN_KEEP
        if (t + 1) % rows == 0:
            layer.routing_state[TOKEN] += 1
            layer.eviction_state[TOKEN] += 1
    stands(block)
    return FINE


def misses_by_window(ids: np.ndarray, hits: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Misses, and tokens that miss at least one expert, in windows of ``window`` tokens: two of (W,) int64.

    Args:
        ids: (T, K) int32, -1 for none.
        hits: (T, K) bool.

    Raises:
        SettingError: hits of another shape, or windows of no token.

    Example:
        >>> ids = np.array([[0, 1], [1, 2], [0, 2]], dtype=np.int32)
        >>> hits = np.array([[0, 0], [1, 0], [0, 1]], dtype=bool)
        >>> [found.tolist() for found in misses_by_window(ids, hits, 2)]
        [[3, 1], [2, 1]]
    """
    if hits.shape != ids.shape or window < 1:
        raise SettingError(f"hits {hits.shape} must have the shape {ids.shape} of the ids, and window={window} be 1 or "
                           "more")
    misses, waits = np.zeros((2, -(-len(ids) // window)), dtype=np.int64)
    _add_up(np.require(ids, np.int32, ["C", "A", "W"]), np.require(hits, np.bool_, ["C", "A", "W"]), window, misses,
            waits)
    return misses, waits


@jit
def _add_up(ids: np.ndarray, hits: np.ndarray, window: int, misses: np.ndarray, waits: np.ndarray) -> None:
    for t in range(ids.shape[0]):
        missed = 0
        for k in range(ids.shape[1]):
            missed += ids[t, k] >= 0 and not hits[t, k]
        misses[t // window] += missed
        waits[t // window] += missed > 0
