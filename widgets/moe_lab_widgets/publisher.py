"""Sends pictures beside the generator, so that sending takes no time from it.

Knows a slot for the newest snapshot and a thread. Handing a message to the kernel's own threads means
waiting for them; that wait is the publisher's, not the generator's. The newest snapshot wins: one that was
not sent when the next comes is dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


class Publisher:
    """A daemon thread that calls ``send(snapshot)`` for the newest snapshot offered; lives as long as a run."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._change = threading.Condition()
        self._newest: Any = None
        self._over = False
        self.cpu_s = 0.0
        """Processor seconds that sending has taken."""
        self._thread = threading.Thread(target=self._run, name="moe-lab-pictures", daemon=True)
        self._thread.start()

    def offer(self, snapshot: Any) -> None:
        """Send this one next."""
        with self._change:
            self._newest = snapshot
            self._change.notify()

    def withdraw(self) -> None:
        """Drop what was offered and not sent: something newer goes another way."""
        with self._change:
            self._newest = None

    def end(self) -> None:
        """Send nothing more; the thread ends."""
        with self._change:
            self._newest, self._over = None, True
            self._change.notify()

    def _run(self) -> None:
        while True:
            with self._change:
                while self._newest is None and not self._over:
                    self._change.wait()
                if self._over:
                    return
                snapshot, self._newest = self._newest, None
            began = time.thread_time()
            self._send(snapshot)
            self.cpu_s += time.thread_time() - began
