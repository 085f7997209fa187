"""A load that Ctrl-C cuts off, once or twice: nobody writes into its slots any more when the caller hears of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from moe_lab.store import Readers


class SlowStore:
    """The caller's first read is interrupted; a helper's read ends only when it is let go."""

    def __init__(self) -> None:
        self.plan = SimpleNamespace(expert_bytes=4 << 20)
        self.begun, self.go, self.ended = threading.Event(), threading.Event(), []
        self.reads = 0

    def read(self, layer: int, expert: int, slot: np.ndarray) -> int:
        self.reads += 1
        if threading.current_thread() is threading.main_thread():
            self.begun.wait(20)
            signal.raise_signal(signal.SIGINT)
            time.sleep(0)
            raise AssertionError("the interrupt did not come")
        self.begun.set()
        self.go.wait(20)
        slot[:] = 1
        self.ended.append(expert)
        return 4 << 20


@pytest.mark.skipif(os.name != "posix", reason="signals are sent to the process")
def test_an_impatient_ctrl_c_finds_no_reader_that_still_writes():
    store = SlowStore()
    readers = Readers(store, threads=2)  # type: ignore[arg-type]
    slots = [np.zeros(8, np.uint8) for _ in range(6)]

    def impatient() -> None:
        store.begun.wait(20)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        store.go.set()

    other = threading.Thread(target=impatient)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        readers.load(0, list(enumerate(slots)))
    written = [int(slot[0]) for slot in slots]
    time.sleep(0.02)
    assert len(store.ended) == 1 and store.reads == 2, "of the reads that were left none was begun"
    assert [int(slot[0]) for slot in slots] == written
    other.join()
