"""Compiling in the background what the first token needs, while experts are read.

Knows which kernels a token goes through, and calls each once on next to nothing. On the first run of a version this
takes seconds; afterwards numba finds them on disk. Whoever needs a kernel earlier compiles it or waits for it, as
without this.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import numpy as np

from moe_lab.eviction import EvictionPolicy
from moe_lab.kernels.formats import Format
from moe_lab.kernels.places import find_places
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walk import walk
from moe_lab.routing import RoutingPolicy


def warm_up(format: Format, routing: RoutingPolicy, eviction: EvictionPolicy, top_k: int,
            large: int) -> threading.Thread:
    """Begin to compile; returns the thread. ``large`` is how many bytes the experts of a token have."""
    thread = threading.Thread(target=_run, args=(_steps(format, routing, eviction, top_k, large),),
                              name="moe-lab-compiler")
    thread.start()
    return thread


def _run(steps: Iterator[Callable[[], object]]) -> None:
    for step in steps:
        if not threading.main_thread().is_alive():          # the program is over
            return
        with contextlib.suppress(Exception):                # whoever really needs it hears of it
            step()


def _steps(format: Format, routing: RoutingPolicy, eviction: EvictionPolicy, top_k: int,
           large: int) -> Iterator[Callable[[], object]]:
    D, F, K = 32, 32, max(1, top_k)
    slot = max(format.slot_bytes(D, F), large // K)         # as large as the real ones: the same kernels are taken
    x, out = np.zeros((1, D), np.float32), np.zeros((1, D), np.float32)
    arena = np.zeros((1, slot), np.uint8)
    slots, gates = np.full(K, -1, np.int32), np.zeros(K, np.float32)
    yield lambda: format.ffn_token(x[0], arena, slots, gates, out[0], F, "silu")
    if format.grouped:
        yield lambda: format.ffn_rows(x, arena[0], out, F, "silu")
    yield lambda: find_places(slots, slots, slots)
    state = LayerState.new(2 * K, K, K, routing, eviction)
    logits = np.zeros((1, 2 * K), np.float32)
    yield lambda: walk(state, logits, logits)
