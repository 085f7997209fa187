"""Compiling ahead, in the background, what the first tokens need, while experts are read.

Knows through which kernels a text goes, and in which order; calls each once on next to nothing, or compiles it for the
types of the model's own arrays. On the first run of a version this takes seconds; afterwards numba finds them on disk.
Whoever needs a kernel earlier compiles it or waits for it, as without this, and is told so if that takes long.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from moe_lab.engine.telemetry import DECODE, Telemetry
from moe_lab.eviction import EvictionPolicy
from moe_lab.kernels.compiling import begun, running
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

T = TypeVar("T")
Step = Callable[[], object]
PATIENCE = 1.0
"""Seconds after which whoever waits is told why."""
PAUSE = 0.01
"""Seconds between two steps in which numba's lock is free for whoever needs a kernel now."""


class Ahead:
    """Does steps in order in a thread of its own, which ends between two steps when the program does.

    >>> ahead, done = Ahead(), []
    >>> ahead.add([lambda: done.append(1), lambda: 1 / 0, lambda: done.append(2)])
    >>> ahead.add([lambda: done.append(3)])
    >>> ahead.join()
    >>> done
    [1, 3]
    """

    def __init__(self) -> None:
        self._waited_since: float | None = None
        self._told = False
        self._begin_anew()
        _all.add(self)

    def _begin_anew(self) -> None:
        """Nothing to do, and no thread."""
        self._chains: deque[deque[Step]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._cold = False

    def add(self, steps: Iterable[Step]) -> None:
        """Do ``steps`` after those added before. One that raises ends its chain, for the next may need what it was to
        leave; whoever really needs it hears of it."""
        with self._lock:
            self._chains.append(deque(steps))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="moe-lab-compiler")
                self._thread.start()

    def stop(self) -> None:
        """Do no further step."""
        with self._lock:
            for chain in self._chains:
                chain.clear()

    def join(self) -> None:
        """Wait until all is done."""
        while (thread := self._thread) is not None:
            thread.join()

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Somebody waits for what is done in this block: if it takes long since kernels are compiled, one line on
        standard error says so."""
        self._waited_since = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._waited_since = None

    def announced(self, steps: Iterator[T]) -> Iterator[T]:
        """The same for a run's ``steps``, which are handed on: the line stands before the first of them or nowhere, as
        the others follow within a text."""
        with self.awaited():
            first = list(itertools.islice(steps, 1))
            if first and (running() or self._more_to_compile()):
                self._tell(patience=0)
        yield from first
        yield from steps

    def _run(self) -> None:
        while (chain := self._next()) is not None:
            with _step:
                before = begun()
                try:
                    chain.popleft()()
                except Exception:
                    chain.clear()
                self._cold = begun() > before
                if self._more_to_compile():
                    self._tell(PATIENCE)
            time.sleep(PAUSE)

    def _next(self) -> deque[Step] | None:
        """The chain whose turn it is; without one the thread ends."""
        with self._lock:
            while self._chains and not self._chains[0]:
                self._chains.popleft()
            if not self._chains or not threading.main_thread().is_alive():
                self._thread = None
                return None
            return self._chains[0]

    def _more_to_compile(self) -> bool:
        """Whether steps are left, and the last one found its kernels missing on disk."""
        with self._lock:
            return self._cold and any(self._chains)

    def _tell(self, patience: float) -> None:
        """Say why somebody waits, once, if somebody does and has done so for ``patience`` seconds."""
        with self._lock:
            since = self._waited_since
            if self._told or since is None or time.perf_counter() - since < patience:
                return
            self._told = True
            print("moe_lab: compiling kernels, once per installation; the first tokens wait for them", file=sys.stderr)


_all: weakref.WeakSet[Ahead] = weakref.WeakSet()
_step = threading.RLock()
"""Held during a step. A fork waits for it: a child has no thread that could end what was begun."""


def _let_go_in_child() -> None:
    for ahead in _all:
        ahead._begin_anew()
    _step.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_step.acquire, after_in_parent=_step.release, after_in_child=_let_go_in_child)


def _kernels(engine: Engine) -> tuple[Step, Step]:
    """Find out what the text after a prompt needs, then compile it. An engine that nobody needs any more must not live
    for the seconds that this takes: the first step holds it weakly, the second not at all."""
    there, found = weakref.ref(engine), list[Step]()

    def find() -> None:
        if (engine := there()) is not None:
            found.extend(engine.decoding_kernels())

    return find, lambda: [compile() for compile in found]


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
    yield from _kernels(engine)
    yield lambda: find_places(slots, slots, slots)
    yield RouteOne(state, logits, logits, telemetry.room(0), np.zeros(2 * K, np.int32))
    yield lambda: format.token_again(Job(D, F, K, 0), x[0], arena, slots, gates, out[0])()
    yield lambda: format.ffn_token(x[0], arena, slots, gates, out[0], F, "silu")
