"""One picture as one binary message, and when to send it.

Knows snapshots, bytes and the clock. Knows no widget and no thread.

A frame is a header of 32 bytes (little endian) and one byte an expert, layer by layer:

    u8 version | u8 flags (1: still) | u16 layers | u16 experts | u16 slots | u32 sequence | u32 token
    f64 sent, ms since 1970 | u64 spare

    bit 0 resident   bit 1 just loaded   bit 2 used now   bit 3 swapped in   bits 4-7 uses, on a square-root scale
"""

from __future__ import annotations

import struct
import time
from typing import Any

import numpy as np

VERSION = 1
HEADER = struct.Struct("<BBHHHIIdQ")
RESIDENT, LOADED, USED, SWAPPED = 1, 2, 4, 8
STILL = 1
"""Flag: generation stands, so marks need not fade."""
LEVELS = 16


def cells(snapshot: Any, before: np.ndarray | None = None) -> np.ndarray:
    """(L, E) uint8 of a snapshot. ``before`` (L, E) bool is who was resident in the frame before this one:
    who has come since counts as just loaded, even where more than one token lies between."""
    resident = snapshot.resident
    loaded = snapshot.loaded & resident
    if before is not None:
        loaded = loaded | (resident & ~before)
    uses = np.sqrt(snapshot.uses)
    level = np.rint(uses / max(uses.max(), 1e-9) * (LEVELS - 1)).astype(np.uint8)
    byte: np.ndarray = (
        resident * np.uint8(RESIDENT) | loaded * np.uint8(LOADED) | snapshot.used * np.uint8(USED)
        | snapshot.swapped * np.uint8(SWAPPED) | level << np.uint8(4)
    ).astype(np.uint8)
    return byte


def pack(sequence: int, snapshot: Any, before: np.ndarray | None = None, still: bool = False) -> bytes:
    """The frame of a snapshot."""
    L, E = snapshot.resident.shape
    head = HEADER.pack(VERSION, STILL if still else 0, L, E, min(snapshot.slots, 65535), sequence & 0xFFFFFFFF,
                       snapshot.token & 0xFFFFFFFF, time.time() * 1e3, 0)
    return head + cells(snapshot, before).tobytes()


class Outbox:
    """When a view is to be sent the next frame.

    At most ``fps`` a second by a next-due clock. A page confirms what it painted by cumulative receipts; with
    more than ``WINDOW`` frames unconfirmed nothing is sent until one comes or ``PATIENCE_S`` has passed, so a
    closed page costs next to nothing and a slow one is never buried.
    """

    WINDOW = 12
    PATIENCE_S = 2.0

    def __init__(self, fps: float = 10.0, clock: Any = time.monotonic) -> None:
        self.fps = fps
        self.sequence = 0
        self.confirmed = 0
        self.patient = True
        """Whether receipts are waited for; not where the kernel cannot hear them (a loop in a cell)."""
        self._clock = clock
        self._due = 0.0
        self._sent_at = 0.0

    def due(self) -> bool:
        """Whether a frame may leave now."""
        now = self._clock()
        if now < self._due:
            return False
        behind = self.sequence - self.confirmed >= self.WINDOW
        return not (self.patient and behind and now - self._sent_at < self.PATIENCE_S)

    def next(self) -> int:
        """A frame leaves now; its sequence number."""
        now = self._clock()
        gap = 1.0 / self.fps
        self._due = self._due + gap if now - self._due < gap else now + gap
        self._sent_at = now
        self.sequence += 1
        return self.sequence

    def heard(self, sequence: int) -> None:
        """The page has painted up to ``sequence``."""
        self.confirmed = max(self.confirmed, min(sequence, self.sequence))
