"""One token of one layer routed, again and again in the same memory: its walk, and where its experts lie.

One call and two numbers, where the walk and the map by themselves take twelve arrays: between two layers' weights the
processor has forgotten everything else, and each array costs it half a microsecond then.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moe_lab.kernels.jit import jit
from moe_lab.kernels.layer import FINE
from moe_lab.kernels.places import find_places
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.sealed import Sealed
from moe_lab.kernels.walk import broken, check_ranks, failed, walk, walk_kernel
from moe_lab.kernels.walked import Walked


class _Given(NamedTuple):
    """What the kernel works on."""

    block: np.ndarray
    logits: np.ndarray
    weights: np.ndarray
    walked: Walked
    slot_of: np.ndarray
    slots: np.ndarray


class RouteOne:
    """The walk of one token of a layer (``walk``), then the slots of its experts (``find_places``).

    Args:
        state: of the layer.
        logits: (1, E) float32, written by the router before each call, as ``weights``.
        weights: (1, E) float32.
        walked: room for one token; what was chosen.
        slot_of: (E,) int32, the map of the layer.

    Example:
        >>> from moe_lab.routing import Original
        >>> from moe_lab.eviction import LRU
        >>> state = LayerState.new(E=4, K=2, C=2, routing=Original(), eviction=LRU())
        >>> z, room = np.array([[3, 2, 1, 0]], dtype=np.float32), Walked.empty(1, 2)
        >>> route = RouteOne(state, z, z / 6, room, np.array([-1, 7, -1, -1], np.int32))
        >>> route(), room.ids.tolist(), route.slots.tolist()
        (1, [[0, 1]], [-1, 7])
    """

    def __init__(self, state: LayerState, logits: np.ndarray, weights: np.ndarray, walked: Walked,
                 slot_of: np.ndarray) -> None:
        check_ranks(state)
        self.state, self.logits, self.weights, self.walked, self.slot_of = state, logits, weights, walked, slot_of
        self.slots = np.full(state.K, -1, np.int32)
        """(K,) int32: where the experts lie, -1 for those that are missing."""
        self._kernel = Sealed(_route_one, _Given(state.block, logits, weights, walked, slot_of, self.slots))

    def __call__(self) -> int:
        """Route the token; returns how many of its experts are missing. Raises as ``walk``."""
        state = self.state
        if not state.steady:
            walk(state, self.logits, self.weights, self.walked)
            return find_places(self.slot_of, self.walked.ids[0], self.slots)
        try:
            found = self._kernel(0)
        except Exception as error:
            raise broken(state, error, self.logits, self.weights) from error
        if found < 0:
            raise failed(state, -found, self.logits)
        return found


@jit(helper=True)
def _route_one(given, number):  # type: ignore[no-untyped-def]
    """How many experts are missing, or minus what went wrong."""
    w = given.walked
    code = walk_kernel(given.block, given.logits, given.weights, w.ids, w.gates, w.hits, w.evicted, w.rank, w.mass)
    return -code if code != FINE else find_places(given.slot_of, w.ids[0], given.slots)
