"""One layer as a kernel sees it: the block of addresses, opened.

Knows the order of the block's fields and the arrays behind them. ``residency.LayerState`` writes the block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moe_lab.kernels.jit import copied, jit
from moe_lab.kernels.layout import Stats
from moe_lab.kernels.pointers import array_at

FIELDS = ("experts", "top_k", "slots", "columns", "routing_size", "eviction_size", "routing_parameters",
          "eviction_parameters", "memory_words", "begun",
          "memory", "shadow", "resident", "last_use", "arrived", "uses", "own", "clock", "routing_state",
          "eviction_state", "routing_params", "eviction_params", "logits", "before", "scores", "keys", "marks",
          "report", "rank", "weakest", "touch", "left", "token")
"""Numbers, then addresses of arrays, then addresses of functions (0: no such hook). ``begun``: whether a kernel is at
work, or has failed, so that there is something to put back."""
(EXPERTS, TOP_K, SLOTS, COLUMNS, ROUTING_SIZE, EVICTION_SIZE, ROUTING_PARAMETERS, EVICTION_PARAMETERS, MEMORY_WORDS,
 BEGUN, MEMORY, SHADOW, RESIDENT, LAST_USE, ARRIVED, USES, OWN_COLUMNS, CLOCK, ROUTING_STATE,
 EVICTION_STATE, ROUTING_PARAMS, EVICTION_PARAMS, LOGITS, BEFORE, SCORES, KEYS, MARKS, REPORT,
 RANK, WEAKEST, TOUCH, LEFT, TOKEN_HOOK) = range(len(FIELDS))

FINE, NAN_SCORE, NO_EXPERT, NAN_KEEP, UNSOUND = range(5)
"""What a kernel returns; ``report`` says where: (token, expert). UNSOUND: a router's numbers, see ``sound``."""


class Layer(NamedTuple):
    """The arrays of one layer. ``marks`` (E + 1,) int64: who is protected, and the mark of the present token.

    ``logits``, ``before`` and ``scores`` (E,) are what the last token saw, see ``residency.LayerState``.
    """

    resident: np.ndarray
    stats: Stats
    clock: np.ndarray
    routing_state: np.ndarray
    eviction_state: np.ndarray
    routing_params: np.ndarray
    eviction_params: np.ndarray
    logits: np.ndarray
    before: np.ndarray
    scores: np.ndarray
    keys: np.ndarray
    marks: np.ndarray
    report: np.ndarray


@jit(helper=True)
def opened(block: np.ndarray) -> Layer:
    """The arrays that ``block`` (int64) points to."""
    E = block[EXPERTS]
    stats = Stats(
        array_at(block[LAST_USE], (E,), np.int64),
        array_at(block[ARRIVED], (E,), np.int64),
        array_at(block[USES], (E,), np.int64),
        array_at(block[OWN_COLUMNS], (block[COLUMNS], E), np.float64),
    )
    return Layer(
        array_at(block[RESIDENT], (E,), np.bool_),
        stats,
        array_at(block[CLOCK], (1,), np.int64),
        array_at(block[ROUTING_STATE], (block[ROUTING_SIZE],), np.float64),
        array_at(block[EVICTION_STATE], (block[EVICTION_SIZE],), np.float64),
        array_at(block[ROUTING_PARAMS], (block[ROUTING_PARAMETERS],), np.float64),
        array_at(block[EVICTION_PARAMS], (block[EVICTION_PARAMETERS],), np.float64),
        array_at(block[LOGITS], (E,), np.float32),
        array_at(block[BEFORE], (E,), np.bool_),
        array_at(block[SCORES], (E,), np.float32),
        array_at(block[KEYS], (E,), np.int64),
        array_at(block[MARKS], (E + 1,), np.int64),
        array_at(block[REPORT], (2,), np.int64),
    )


@jit(helper=True)
def remember(block: np.ndarray) -> None:
    """Copy what the kernels change, so that it can be put back."""
    memory = array_at(block[MEMORY], (block[MEMORY_WORDS],), np.int64)
    shadow = array_at(block[SHADOW], (block[MEMORY_WORDS],), np.int64)
    copied(memory, shadow)
    block[BEGUN] = 1


@jit(helper=True)
def stands(block: np.ndarray) -> None:
    """What has been changed since ``remember`` stands, and is not to be put back."""
    block[BEGUN] = 0
