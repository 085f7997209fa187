"""Digests are the same however much is hashed at a time, and another for any other byte."""

from __future__ import annotations

import numpy as np
import pytest

from moe_lab import digests as hashing
from moe_lab.digests import Stretch, digest, digests


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of a thousand bytes, and threads for the smallest work."""
    monkeypatch.setattr(hashing, "PIECE_BYTES", 1000)
    monkeypatch.setattr(hashing, "_ALONE_BYTES", 0)


def test_threads_change_no_digest(small_pieces, monkeypatch, rng):
    stretches = [Stretch.of(rng.integers(0, 256, n, dtype=np.uint8)) for n in (0, 1, 999, 1000, 1001, 12_345)]
    monkeypatch.setattr(hashing, "_THREADS", 4)
    by_many = digests(stretches)
    monkeypatch.setattr(hashing, "_THREADS", 1)
    assert digests(stretches) == by_many and len(set(by_many)) == 6


def test_any_other_byte_or_order_is_another_digest(small_pieces, rng):
    memory = rng.integers(0, 255, 5000, dtype=np.uint8)
    before = digests([Stretch.of(memory)])
    for place in (0, 1000, 2499, 4999):
        other = memory.copy()
        other[place] += 1
        assert digests([Stretch.of(other)]) != before
    assert digests([Stretch.of(np.roll(memory, 1000))]) != before


def test_an_error_while_bytes_are_read_comes_out(small_pieces):
    def broken(start, end):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        digests([Stretch(10_000, broken)])


def test_values_are_told_apart_and_numpys_numbers_are_numbers():
    values = [1, 1.5, "1", None, True, [1], {"a": 1}, float("inf")]
    assert len({digest(value) for value in values}) == len(values)
    assert digest([np.float64(0.1), np.int32(7)]) == digest([0.1, 7])
    with pytest.raises(TypeError, match="would mean nothing"):
        digest(object())
