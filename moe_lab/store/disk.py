"""A simulated disk: how long reading would have taken on a slower one.

Knows bytes and time. Reads nothing itself: the readers hand over what they have read and when they
began, and are held back until the simulated disk would have been done. Whatever reports a figure made
with it says so (``simulated``, ``repr``).
"""

from __future__ import annotations

import threading
import time

from moe_lab.errors import SettingError
from moe_lab.forks import renew_in_child
from moe_lab.units import format_rate, format_seconds, parse_rate, parse_seconds

_SLICE_S = 0.02
"""A long wait is cut into pieces, so that a changed bandwidth is felt at once."""
_OVERSLEEP_S = 2e-3
"""A sleep ends late; up to this much of it is given back to the next load, so that the mean rate is right."""


class Disk:
    """A disk of ``bandwidth`` (bytes a second or "200 MB/s") and ``latency`` (seconds or "0.1 ms").

    The reads of one load are under way together, so they pay the latency once; their bytes come one
    after the other. A load is never faster than the real disk. ``bandwidth`` may be changed at any time.
    Raises ``SettingError`` for a bandwidth or latency that is none.

    >>> disk = Disk("200 MB/s", latency="0.1 ms")
    >>> disk
    simulated disk, 200 MB/s, 0.1 ms
    >>> disk.bandwidth = 1e9
    >>> disk.bandwidth, disk.simulated
    (1000000000.0, True)
    """

    simulated = True

    def __init__(self, bandwidth: str | float, latency: str | float = 0.0) -> None:
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._overslept = 0.0
        self.bandwidth = bandwidth
        self._latency = parse_seconds(latency)
        renew_in_child(self)

    def after_fork(self) -> None:
        """In a child: the thread that may have held the lock is the parent's."""
        self._lock = threading.Lock()

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self._bandwidth

    @bandwidth.setter
    def bandwidth(self, value: str | float) -> None:
        rate = parse_rate(value)
        if rate < 1:
            raise SettingError(f"a disk of {value!r} never delivers; type a bandwidth like '200 MB/s', or disk=None "
                               f"for the real disk")
        self._bandwidth = rate

    @property
    def latency(self) -> float:
        """Seconds before the first byte of a load."""
        return self._latency

    def pace(self, read_bytes: int, began: float) -> None:
        """Return when a load of ``read_bytes`` that began at ``began`` (``perf_counter``) would be through."""
        with self._lock:
            due = max(began - self._overslept, self._free_at) + self._latency
            left, slept = float(read_bytes), False
            while left > 0:
                rate = self._bandwidth
                part = min(left, rate * _SLICE_S)
                left -= part
                due += part / rate
                slept = (rest := due - time.perf_counter()) > 0
                if slept:
                    time.sleep(rest)
            self._free_at = due
            self._overslept = min(time.perf_counter() - due, _OVERSLEEP_S) if slept else 0.0

    def __repr__(self) -> str:
        latency = f", {format_seconds(self._latency)}" if self._latency else ""
        return f"simulated disk, {format_rate(self._bandwidth)}{latency}"
