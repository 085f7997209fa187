"""Sends pictures beside the generator, so that sending takes no time from it.

Knows one request and a thread. Copying the engine's state, putting a picture together and handing a message to the
kernel's own threads are the publisher's work; the generator only asks. The picture shows the state at the moment it
is made, so a request that was not met when the next comes is met with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Publisher:
    """A daemon thread that calls ``send()`` when asked; lives as long as a run."""

    def __init__(self, send: Callable[[], None]) -> None:
        self._send = send
        self._change = threading.Condition()
        self._asked = self._over = False
        self.cpu_s = 0.0
        """Processor seconds that sending has taken."""
        self._thread = threading.Thread(target=self._run, name="moe-lab-pictures", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Send a picture now."""
        with self._change:
            self._asked = True
            self._change.notify()

    def withdraw(self) -> None:
        """Forget a request: the picture goes another way."""
        with self._change:
            self._asked = False

    def end(self) -> None:
        """Send nothing more; the thread ends."""
        with self._change:
            self._asked, self._over = False, True
            self._change.notify()

    def _run(self) -> None:
        while True:
            with self._change:
                while not (self._asked or self._over):
                    self._change.wait()
                if self._over:
                    return
                self._asked = False
            began = time.thread_time()
            self._send()
            self.cpu_s += time.thread_time() - began
