"""Logits of a text, window by window, in a scratch file: as many as fit.

Knows a file that nobody else sees and that goes with this. Where there is no room, or writing fails, it keeps fewer;
the caller makes the others again.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import IO

import numpy as np
import torch


class KeptLogits:
    """At most ``limit`` bytes of logits, and never more than half of what is free.

    >>> kept = KeptLogits(None, 1 << 20)
    >>> kept.add(torch.zeros(2, 4, dtype=torch.bfloat16))
    >>> kept.get(0).shape, kept.get(1)
    (torch.Size([2, 4]), None)
    """

    def __init__(self, folder: Path | None, limit: int) -> None:
        self._file, free = _scratch(folder)
        self._room = min(limit, free // 2)
        self._end = 0
        self._kept: list[tuple[int, torch.dtype, torch.Size]] = []
        if self._file is not None:
            weakref.finalize(self, self._file.close)

    def add(self, logits: torch.Tensor) -> None:
        """Keep the logits (n, V) of the next window, unless those of an earlier one had no room."""
        size = logits.numel() * logits.element_size()
        if self._file is None or self._end + size > self._room:
            self._room = 0
            return
        view = memoryview(logits.contiguous().view(torch.uint8).numpy()).cast("B")
        try:
            self._file.seek(self._end)
            while view:
                view = view[self._file.write(view):]
        except OSError:         # the disk is full, or its folder went away
            self._room = 0
            return
        self._kept.append((self._end, logits.dtype, logits.shape))
        self._end += size

    def get(self, number: int) -> torch.Tensor | None:
        """(n, V) of window ``number``; None where it was not kept, or cannot be read."""
        if number >= len(self._kept) or self._file is None:
            return None
        at, dtype, shape = self._kept[number]
        raw = bytearray(dtype.itemsize * int(np.prod(shape)))
        view = memoryview(raw)
        try:
            self._file.seek(at)
            while view and (got := self._file.readinto(view)):          # type: ignore[attr-defined]
                view = view[got:]
        except OSError:
            return None
        return None if view else torch.frombuffer(raw, dtype=dtype).reshape(shape)

    def close(self) -> None:
        """Let them go."""
        self._kept, self._room = [], 0
        if self._file is not None:
            self._file.close()


def _scratch(folder: Path | None) -> tuple[IO[bytes] | None, int]:
    """A nameless file in ``folder``, else where the system has its own, and the bytes free there; None for no file."""
    for place in dict.fromkeys([folder, None]):
        try:
            file = tempfile.TemporaryFile(dir=place, buffering=0)       # noqa: SIM115 - outlives this
            return file, shutil.disk_usage(place or tempfile.gettempdir()).free
        except OSError:
            continue
    return None, 0
