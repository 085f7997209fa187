"""Digests: 32 hex digits that stand for values, for memory and for the bytes of files.

Knows hashing, of much with several threads and a bar. Refuses to know what the bytes mean and what is kept under
their digest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

PIECE_BYTES = 16 << 20
"""What one thread hashes at a time. Part of what a digest is: with pieces of another size it is another."""
_ALONE_BYTES = 1 << 20
"""So few bytes are hashed before a thread is awake."""
_THREADS = max(1, min(4, os.cpu_count() or 1))


class Stretch(NamedTuple):
    """Bytes to be hashed: how many, and ``read(start, end)``, which gives some of them and may be called by any thread.

    Example:
        >>> stretch = Stretch(3, lambda start, end: b"abc"[start:end])
        >>> digests([stretch]) == digests([Stretch.of(np.frombuffer(b"abc", np.uint8))])
        True
    """

    size: int
    read: Callable[[int, int], Any]

    @classmethod
    def of(cls, memory: np.ndarray) -> Stretch:
        """The bytes of a contiguous array."""
        flat = memory.reshape(-1).view(np.uint8)
        return cls(flat.size, lambda start, end: flat[start:end])


def digests(stretches: Sequence[Stretch], words: str = "hash") -> list[str]:
    """The digest of each stretch. ``words`` names the bar that is shown where it takes longer than two seconds.

    Raises:
        OSError: what a ``read`` raises.
    """
    pieces = [(stretch, start) for stretch in stretches for start in range(0, stretch.size, PIECE_BYTES)]
    total = sum(stretch.size for stretch in stretches)
    if total <= _ALONE_BYTES or _THREADS == 1:
        return _joined(stretches, map(_piece, pieces))
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="moe-lab-digest")
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc=words, delay=2, leave=False) as bar:
            def told() -> Iterator[bytes]:
                for (stretch, start), done in zip(pieces, pool.map(_piece, pieces), strict=True):
                    bar.update(min(PIECE_BYTES, stretch.size - start))
                    yield done

            return _joined(stretches, told())
    finally:
        pool.shutdown(cancel_futures=True)


def _piece(piece: tuple[Stretch, int]) -> bytes:
    (size, read), start = piece
    return hashlib.blake2b(read(start, min(size, start + PIECE_BYTES)), digest_size=16).digest()


def _joined(stretches: Sequence[Stretch], pieces: Iterator[bytes]) -> list[str]:
    """The digest of each stretch over its size and the digests of its pieces, which come in order."""
    found = []
    for stretch in stretches:
        whole = hashlib.blake2b(stretch.size.to_bytes(8, "little"), digest_size=16)
        for _ in range(0, stretch.size, PIECE_BYTES):
            whole.update(next(pieces))
        found.append(whole.hexdigest())
    return found


def digest(*parts: Any) -> str:
    """The digest of values that JSON can hold; numbers of NumPy count as Python's.

    >>> digest("lru", 8) == digest("lru", np.int64(8)) != digest("lru", 9)
    True
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a digest of {value!r} would mean nothing")
