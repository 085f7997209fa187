"""Replay: the experts of recorded tokens settled by an eviction policy, one layer at a time.

Knows chosen ids and residency. Knows no logits: what was routed stays as it was. The very same settling as in the
walk; the slow twin is ``walk_slow.replay_slow``.
"""

from __future__ import annotations

import numpy as np

from moe_lab.errors import PolicyError, SettingError
from moe_lab.kernels.jit import jit
from moe_lab.kernels.layer import FINE, NAN_KEEP, opened, remember
from moe_lab.kernels.layout import TOKEN
from moe_lab.kernels.plugin import raised
from moe_lab.kernels.residency import LayerState, nan_keep
from moe_lab.kernels.settle import settle


def replay_layer(ids: np.ndarray, weights: np.ndarray | None, state: LayerState) -> np.ndarray:
    """Settle T recorded tokens of one layer; hits (T, K) bool.

    Args:
        ids: (T, K) int32, distinct in a row, -1 for none; experts are touched in the order given.
        weights: (T, K) float32 or None, if no policy asks for them.
        state: changed in place; as before if an error is raised.

    Raises:
        PolicyError: a policy that needs what is not here, or whose function raised or gave NaN.

    Example:
        >>> from moe_lab.eviction import LRU
        >>> from moe_lab.routing import Original
        >>> state = LayerState.new(E=4, K=2, C=2, routing=Original(), eviction=LRU())
        >>> replay_layer(np.array([[0, 1], [1, 2], [0, 2]], dtype=np.int32), None, state).tolist()
        [[False, False], [True, False], [False, True]]
    """
    check_needs(state, weights is not None)
    ids = np.require(ids, np.int32, ["C", "A", "W"])
    if ids.ndim != 2 or ids.shape[1] != state.K:
        raise SettingError(f"ids must be (tokens, {state.K}), not {ids.shape}")
    if ids.size and not (ids.min() >= -1 and ids.max() < state.E):
        raise SettingError(f"ids must be from -1 to {state.E - 1}, not from {ids.min()} to {ids.max()}")
    gates = np.require(np.zeros((1, ids.shape[1])) if weights is None else weights, np.float32, ["C", "A", "W"])
    if weights is not None and gates.shape != ids.shape:
        raise SettingError(f"weights {gates.shape} must have the shape of ids {ids.shape}")
    hits = np.empty(ids.shape, np.bool_)
    try:
        code = replay_kernel(state.block, ids, gates, hits)
    except Exception as error:
        state.undo()
        upto = int(state.report[0]) + 1
        rows = None if weights is None else gates[:upto]
        raise raised(error, (type(state.eviction),), lambda: _again(state, ids[:upto], rows)) from error
    if code != FINE:
        expert = int(state.report[1])
        state.undo()
        raise nan_keep(state, expert)
    return hits


def check_needs(state: LayerState, weights: bool) -> None:
    """A PolicyError if the eviction policy reads what a trace of ids (and ``weights``) does not hold."""
    lacking = state.eviction.needs - ({"weights"} if weights else set())
    if lacking:
        raise PolicyError(f"policy {state.eviction.name!r} needs {' and '.join(sorted(lacking))}, which this trace "
                          "does not hold; run it in an engine, or replay a trace that has them")


def _again(state: LayerState, ids: np.ndarray, weights: np.ndarray | None) -> None:
    from moe_lab.kernels.walk_slow import replay_slow

    replay_slow(state.copy(), ids, weights)


@jit
def replay_kernel(block: np.ndarray, ids: np.ndarray, gates: np.ndarray, hits: np.ndarray) -> int:
    """Settle T tokens. ``gates`` (T, K), or (1, K) zeros for all of them. Returns FINE or NAN_KEEP."""
    remember(block)
    layer = opened(block)
    held, evicted, one = np.sum(layer.resident), np.empty(ids.shape[1], np.int32), gates.shape[0] < ids.shape[0]
    for t in range(ids.shape[0]):
        layer.report[0] = t
        held = settle(block, layer, held, ids[t], gates[0 if one else t], hits[t], evicted)
        if held < 0:
            return NAN_KEEP
        layer.routing_state[TOKEN] += 1
        layer.eviction_state[TOKEN] += 1
    return FINE
