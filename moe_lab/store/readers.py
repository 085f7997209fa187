"""Readers: several experts at once, and how long the caller waited for them.

Knows threads and the simulated disk; knows neither caches nor what an expert is good for. The caller is
one of the readers: few bytes are read on the spot, because waking a thread costs more than they do.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from moe_lab.errors import ReadError, SettingError
from moe_lab.forks import renew_in_child
from moe_lab.interrupts import uninterrupted
from moe_lab.store.disk import Disk
from moe_lab.store.experts import ExpertStore
from moe_lab.units import whole_number

ALONE_BYTES = 1 << 20
"""A load of at most this many bytes is read by the caller alone."""


class Readers:
    """``threads`` readers (the caller among them) over one store, held back by ``disk`` if it is simulated.

    >>> from moe_lab.kernels.formats import FORMATS
    >>> from moe_lab.models import resolve_model, study
    >>> store = ExpertStore(study(resolve_model("pocket")).plan, FORMATS["bf16"])
    >>> arena = np.empty((2, store.slot_bytes), np.uint8)
    >>> read_bytes, wait_s = Readers(store, Disk("200 MB/s")).load(0, [(5, arena[0]), (9, arena[1])])
    >>> read_bytes, round(read_bytes / 200e6, 5) <= wait_s
    (196608, True)
    """

    def __init__(self, store: ExpertStore, disk: Disk | None = None, threads: int = 2) -> None:
        if (number := whole_number(threads)) is None or not 1 <= number <= 64:
            raise SettingError(f"{threads!r} is no number of readers; type 1 to 64")
        if disk is not None and not isinstance(disk, Disk):
            raise SettingError(f"disk={disk!r} is no disk; type disk=ml.Disk('200 MB/s'), or None for the real one")
        self.store, self.disk, self.threads = store, disk, number
        self._pool = self._new_pool()
        renew_in_child(self)

    def _new_pool(self) -> ThreadPoolExecutor | None:
        """The threads besides the caller; each begins when it is first needed."""
        if self.threads == 1:
            return None
        pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="moe-lab-reader")
        weakref.finalize(self, pool.shutdown, wait=False)
        return pool

    def after_fork(self) -> None:
        """In a child: the threads are the parent's."""
        self._pool = self._new_pool()

    def load(self, layer: int, wanted: Sequence[tuple[int, np.ndarray]], paced: bool = True) -> tuple[int, float]:
        """Read every (expert, slot) of ``wanted``; returns (bytes read, seconds waited).

        All or an error: one ``ReadError`` whose ``experts`` could not be read, after all others were.
        With ``paced=False`` a simulated disk does not hold the load back.
        """
        began = time.perf_counter()
        jobs, total = deque(wanted), [0]
        failed: list[ReadError] = []
        lock = threading.Lock()

        def work() -> None:
            mine = 0
            while True:
                try:
                    expert, slot = jobs.popleft()
                except IndexError:
                    break
                try:
                    mine += self.store.read(layer, expert, slot)
                except ReadError as error:
                    failed.append(error)
            with lock:
                total[0] += mine

        waiting: list[Future[None]] = []
        try:
            for _ in range(self._helpers(len(wanted)) if self._pool is not None else 0):
                waiting.append(self._pool.submit(work))  # type: ignore[union-attr]
            work()
        finally:
            jobs.clear()                            # of a load that is cut off nothing more is begun
            if waiting:
                with uninterrupted():               # a second Ctrl-C, too, finds nobody who still writes into a slot
                    for helper in waiting:
                        helper.result()
        if failed:
            experts = tuple(sorted(expert for error in failed for expert in error.experts))
            message = f"{len(failed)} of {len(wanted)} experts could not be read; the first: {failed[0]}"
            raise ReadError(message, experts) from failed[0]
        if paced and self.disk is not None:
            self.disk.pace(total[0], began)
        return total[0], time.perf_counter() - began

    def _helpers(self, count: int) -> int:
        """Threads besides the caller that are worth waking for ``count`` experts."""
        if count * self.store.plan.expert_bytes <= ALONE_BYTES:
            return 0
        return min(self.threads, count) - 1

    def close(self) -> None:
        """End the threads and close the store's files."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self.store.close()
