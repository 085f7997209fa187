"""Helpers for a kernel's caller: threads that take pieces of a job if they are awake, and are not waited for if not.

Knows pieces by number and a function that computes one; knows no expert. The caller opens a gate, takes pieces
itself, closes the gate, and waits only for helpers that came in. A helper that sleeps, is late or has died costs
nothing but its help, so nothing can hang on it; a second caller meanwhile works alone. Pieces are cut by size, never
by the number of threads, and write to places of their own: the result has the same bits whoever computes what.

A helper spins a while after a job, for the next layer's, then sleeps on a lock. numba's own ``parallel=True`` would
wait for every thread, and one of its layers ends the process when two threads enter it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from typing import Any

import numpy as np
import psutil
from numba import types

from moe_lab.errors import SettingError
from moe_lab.kernels.jit import jit
from moe_lab.kernels.pointers import add_to_word, breathe, load_word, store_word, take_word, work_at
from moe_lab.units import whole_number

VARIABLE = "MOE_LAB_THREADS"
"""Environment variable with the number of threads that kernels may use."""
SMALL = 2 << 20
"""Bytes of a job under which it is not shared: a pocket model's layer is done before a helper has come."""
SPINS = 10_000
"""Rounds that a helper waits awake."""
MOST = 64

LINE = 8
"""Words of a cache line; every word that several threads write to has one of its own."""
GATE, NEXT, FIRST, LEFT, TAKEN, STOP, JOB, FUNCTION, ITEMS, BARRIER = (LINE * i for i in range(10))
PARKED = 10 * LINE
CLOSED = 1 << 31
JOINED = CLOSED - 1
GENERATION = 32
"""The gate is one word: how often it was opened, above bit 32; whether it is closed, bit 31; how many came in."""


if os.name == "posix":
    _let_others = types.ExternalFunction("sched_yield", types.int32())
else:

    @jit(helper=True)
    def _let_others():  # type: ignore[no-untyped-def]
        return 0


@jit(helper=True)
def _pause(round):  # type: ignore[no-untyped-def]
    """Wait a moment; now and then let another thread have the core, which may be the one that is waited for."""
    breathe()
    if round % 64 == 63:
        _let_others()


@jit(helper=True)
def _pieces(crew):  # type: ignore[no-untyped-def]
    """Take pieces until none is left. Those from ``BARRIER`` on need all before it."""
    job, items, barrier = load_word(crew + 8 * JOB), load_word(crew + 8 * ITEMS), load_word(crew + 8 * BARRIER)
    work = work_at(load_word(crew + 8 * FUNCTION))
    item = add_to_word(crew + 8 * NEXT, 1)
    while item < items:
        if item >= barrier:
            spun = 0
            while load_word(crew + 8 * FIRST) < barrier:
                _pause(spun)
                spun += 1
        work(job, item)
        if item < barrier:
            add_to_word(crew + 8 * FIRST, 1)
        item = add_to_word(crew + 8 * NEXT, 1)


@jit
def run(crew, job, function, items, barrier):  # type: ignore[no-untyped-def]
    """Compute pieces 0 to ``items`` of the job at address ``job`` with the function at ``function``; those from
    ``barrier`` on after all before it. ``crew`` is a crew's address, 0 for none. Returns how many helpers came in."""
    if crew == 0 or not take_word(crew + 8 * TAKEN):
        work = work_at(function)
        for item in range(items):
            work(job, item)
        return 0
    store_word(crew + 8 * JOB, job)
    store_word(crew + 8 * FUNCTION, function)
    store_word(crew + 8 * ITEMS, items)
    store_word(crew + 8 * BARRIER, barrier)
    for place in (NEXT, FIRST, LEFT):
        store_word(crew + 8 * place, 0)
    store_word(crew + 8 * GATE, ((load_word(crew + 8 * GATE) >> GENERATION) + 1) << GENERATION)
    _pieces(crew)
    came = add_to_word(crew + 8 * GATE, CLOSED) & JOINED
    spun = 0
    while load_word(crew + 8 * LEFT) != came:
        _pause(spun)
        spun += 1
    store_word(crew + 8 * TAKEN, 0)
    return came


@jit
def serve(crew, place, spins):  # type: ignore[no-untyped-def]
    """The life of a helper until it sleeps (returns 1) or is dismissed (0)."""
    seen, spun = np.int64(-1), 0
    while load_word(crew + 8 * STOP) == 0:
        gate = load_word(crew + 8 * GATE)
        if (gate & CLOSED) == 0 and (gate >> GENERATION) != seen:
            gate = add_to_word(crew + 8 * GATE, 1)
            if (gate & CLOSED) == 0:
                seen, spun = gate >> GENERATION, 0
                _pieces(crew)
                add_to_word(crew + 8 * LEFT, 1)
        else:
            _pause(spun)
            spun += 1
            if spun >= spins:
                store_word(crew + 8 * (PARKED + LINE * place), 1)
                return 1
    return 0


class Crew:
    """A caller and ``threads`` - 1 helpers, whose threads begin with the first job that is shared.

    >>> Crew(1).address
    0
    """

    def __init__(self, threads: int, spins: int = SPINS) -> None:
        if (number := whole_number(threads)) is None or not 1 <= number <= MOST:
            raise SettingError(f"threads={threads!r} is no number of threads for the kernels; type 1 to {MOST}")
        self.threads, self._spins = number, spins
        memory = np.zeros(PARKED + LINE * (MOST + 1), dtype=np.int64)
        self._words = memory[-memory.ctypes.data % (8 * LINE) // 8 :]
        self._words[GATE] = CLOSED
        self._locks = [threading.Lock() for _ in range(threads - 1)]
        self._helpers: list[threading.Thread] = []
        self._beginning = threading.Lock()
        self._address = int(self._words.ctypes.data)
        self._parked = self._words[PARKED::LINE][: threads - 1]

    @property
    def address(self) -> int:
        """What ``run`` takes: helpers that sleep are woken by asking for it."""
        if self.threads == 1:
            return 0
        if not self._helpers:
            self._begin()
        for place, parked in enumerate(self._parked.tolist()):
            if parked:
                self._wake(place)
        return self._address

    def _wake(self, place: int) -> None:
        self._parked[place] = 0
        with contextlib.suppress(RuntimeError):         # another caller was faster
            self._locks[place].release()

    def _begin(self) -> None:
        with self._beginning:
            if self._helpers:
                return
            serve(self._address, 0, 0)                  # compiled before a thread needs it; sleeps at once
            self._parked[:] = 0
            for place, lock in enumerate(self._locks):
                lock.acquire()
                name = f"moe-lab-kernels-{place + 1}"
                self._helpers.append(threading.Thread(target=self._live, args=(place,), name=name, daemon=True))
            for helper in self._helpers:
                helper.start()

    def _live(self, place: int) -> None:
        while serve(self._address, place, self._spins):
            self._locks[place].acquire()

    def dismiss(self) -> None:
        """End the helpers; the crew still computes, alone."""
        self._words[STOP] = 1
        for place, helper in enumerate(self._helpers):
            while helper.is_alive():
                self._wake(place)
                helper.join(0.01)


def default_threads() -> int:
    """MOE_LAB_THREADS, else the cores that this process may use, hyperthreads not counted."""
    asked = os.environ.get(VARIABLE)
    if asked:
        if not asked.isdecimal() or not 1 <= int(asked) <= MOST:
            raise SettingError(f"{VARIABLE}={asked!r} is no number of threads; set 1 to {MOST}, or leave it out")
        return int(asked)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed, MOST))


_shared: Crew | None = None
_making = threading.Lock()


def shared() -> Crew:
    """The crew of this process, of ``default_threads`` unless ``set_threads`` said otherwise."""
    return _shared or set_threads(None)


def set_threads(threads: int | None) -> Crew:
    """Let the kernels of this process use ``threads`` threads from now on; None is the default."""
    global _shared
    with _making:
        before, _shared = _shared, Crew(default_threads() if threads is None else threads)
    if before is not None:
        before.dismiss()
    return _shared


def _forget() -> None:
    """After a fork: the helpers are the parent's."""
    global _shared, _making
    _shared, _making = None, threading.Lock()


def _close() -> None:
    if _shared is not None:
        _shared.dismiss()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(_close)             # a helper must not run machine code while it is taken down


_alive: list[Any] = []


def address_of(kernel: Any, signature: Any) -> int:
    """The address of a kernel's machine code, which is kept as long as the process."""
    kernel.compile(signature)
    _alive.append(kernel)
    result = kernel.get_compile_result(signature)
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))
