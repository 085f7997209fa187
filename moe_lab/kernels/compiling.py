"""Whether kernels are being compiled, for those who wait.

Counts kernels that are kept on disk and were not found there: that happens once per installation. What comes from disk,
and a user's policy, which every process compiles, do not count.
"""

from __future__ import annotations

from typing import Any

from numba.core import event

from moe_lab.kernels.kept import KernelCache


class _Watch(event.Listener):
    """Hears of each function that numba compiles, under numba's own lock."""

    begun = running = 0

    def on_start(self, event: Any) -> None:
        """One begins."""
        if isinstance(event.data["dispatcher"]._cache, KernelCache):
            self.begun += 1
            self.running += 1

    def on_end(self, event: Any) -> None:
        """One is through, or has failed."""
        self.running -= isinstance(event.data["dispatcher"]._cache, KernelCache)


_watch = _Watch()
event.register("numba:compile", _watch)


def begun() -> int:
    """How many kernels this process has begun to compile."""
    return _watch.begun


def running() -> bool:
    """Whether one is being compiled now, in any thread."""
    return _watch.running > 0
