"""Compiling ahead, in the background, what the first tokens need, while experts are read.

Knows through which kernels a text goes, and in which order; calls each once on next to nothing, or compiles it for the
types of the model's own arrays. On the first run of a version this takes seconds; afterwards numba finds them on disk.
Whoever needs a kernel earlier compiles it or waits for it, as without this.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from moe_lab.engine.telemetry import DECODE, Telemetry
from moe_lab.eviction import EvictionPolicy
from moe_lab.kernels.formats import Format
from moe_lab.kernels.formats.matrix import CODES, quantised_matrix, times_rows
from moe_lab.kernels.job import Job
from moe_lab.kernels.places import find_places
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.route_one import RouteOne
from moe_lab.kernels.walk import walk
from moe_lab.routing import RoutingPolicy

if TYPE_CHECKING:
    from moe_lab.engine.engine import Engine

Step = Callable[[], object]
PATIENCE = 1.0
"""Seconds after which whoever waits for a token is told why."""
PAUSE = 0.01
"""Seconds between two steps in which numba's lock is free for whoever needs a kernel now."""


class Ahead:
    """Does steps in order in a thread of its own, which ends between two steps when the program does.

    >>> ahead, done = Ahead(), []
    >>> ahead.add([lambda: done.append(1), lambda: 1 / 0, lambda: done.append(2)])
    >>> ahead.join()
    >>> done
    [1, 2]
    """

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._awaited: Callable[[], bool] = lambda: False
        self._told = False

    def add(self, steps: Iterator[Step] | list[Step], awaited: Callable[[], bool] | None = None) -> None:
        """Do ``steps`` after those before; a step that raises is passed over: whoever really needs it hears of it.

        Where ``awaited()`` is true while this takes longer than ``PATIENCE``, one line on standard error says why.
        """
        with self._lock:
            self._steps.extend(steps)
            self._awaited = awaited or self._awaited
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="moe-lab-compiler")
                self._thread.start()

    def stop(self) -> None:
        """Do no further step."""
        with self._lock:
            self._steps.clear()

    def join(self) -> None:
        """Wait until all is done."""
        while (thread := self._thread) is not None:
            thread.join()

    def _run(self) -> None:
        began = time.perf_counter()
        while True:
            with self._lock:
                if not self._steps or not threading.main_thread().is_alive():
                    self._thread = None
                    return
                step = self._steps.popleft()
            with contextlib.suppress(Exception):
                step()
            if not self._told and time.perf_counter() - began > PATIENCE and self._steps and self._awaited():
                self._told = True
                print("moe_lab: compiling kernels, once per installation; the first tokens wait for them",
                      file=sys.stderr)
            time.sleep(PAUSE)


def _weakly(method: Callable[[], object]) -> Step:
    """A call of a bound method that does not keep its object alive; nothing where that is gone."""
    there = weakref.WeakMethod(method)

    def call() -> object:
        bound = there()
        return None if bound is None else bound()

    return call


def for_loading(format: Format, dense: str, routing: RoutingPolicy, eviction: EvictionPolicy) -> Iterator[Step]:
    """What is needed before an engine stands: matrices are quantised, policies' functions called."""
    if dense in CODES:
        yield lambda: quantised_matrix(np.zeros((1, 1), np.float32), dense)
    yield lambda: LayerState.new(1, 1, 1, routing, eviction)
    if format.native is None:
        one = np.zeros((1, 1), np.float32)
        yield lambda: format.encode(one, one, one, np.zeros(format.slot_bytes(1, 1), np.uint8))


def for_tokens(engine: Engine) -> Iterator[Step]:
    """What a prompt goes through, then what the tokens after it go through as well."""
    format, spec, dense = engine.format, engine.spec, engine.dense
    D, F, K = 32, 32, max(1, spec.top_k)
    x, out, gates = np.zeros((1, D), np.float32), np.zeros((1, D), np.float32), np.zeros(K, np.float32)
    slots, logits = np.full(K, -1, np.int32), np.zeros((1, 2 * K), np.float32)
    size = max(format.slot_bytes(D, F), spec.expert_bytes[format.name])     # a real one's: the same kernels are taken
    arena = np.zeros((1, size), np.uint8)
    state = LayerState.new(2 * K, K, K, engine.routing, engine.eviction)
    telemetry = Telemetry([state], capacity=1)
    if dense in CODES:
        yield lambda: times_rows(quantised_matrix(np.zeros((1, D), np.float32), dense), x)
    yield lambda: walk(state, logits, logits, telemetry.room(0))
    if format.grouped:
        yield lambda: format.ffn_rows(x, arena[0], np.zeros(1, np.int64), gates, out, F, "silu")
    telemetry.begin(1, DECODE)
    yield telemetry.end
    yield _weakly(engine.compile_decoding)
    yield lambda: find_places(slots, slots, slots)
    yield RouteOne(state, logits, logits, telemetry.room(0), np.zeros(2 * K, np.int32))
    yield lambda: format.token_again(Job(D, F, K, 0), x[0], arena, slots, gates, out[0])()
    yield lambda: format.ffn_token(x[0], arena, slots, gates, out[0], F, "silu")
