"""Arguments written down once are what they were: arrays of any layout, tuples in tuples, whole numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from moe_lab.kernels.jit import jit
from moe_lab.kernels.sealed import Sealed


class Inner(NamedTuple):
    bits: np.ndarray
    flags: np.ndarray


class Outer(NamedTuple):
    matrix: np.ndarray
    on: bool
    inner: Inner
    number: int
    pair: tuple[np.ndarray, np.ndarray]
    out: np.ndarray


@jit
def look(given, at):
    out = given.out
    out[0] = given.matrix[at, 1] + given.matrix.shape[0]
    out[1] = given.inner.bits[at] if given.on else -1
    out[2] = given.number
    out[3] = given.pair[0].sum() * given.pair[1].size
    out[4] = given.inner.flags.sum()


LAYOUTS = {
    "rows": np.arange(12.0).reshape(4, 3),
    "columns": np.asfortranarray(np.arange(12.0).reshape(4, 3)),
    "steps": np.arange(24.0).reshape(4, 6)[:, ::2],
}


@pytest.mark.parametrize("matrix", LAYOUTS.values(), ids=LAYOUTS)
def test_a_kernel_sees_what_was_sealed(matrix):
    big, out = 2**40 + 7, np.zeros(5)
    given = Outer(matrix, True, Inner(np.array([5, 65535], np.uint16), np.array([True, False, True])), big,
                  (np.ones(3, np.float32), np.empty((2, 0))), out)
    kernel = Sealed(look, given)
    for at in range(2):
        kernel(at)
        assert out.tolist() == [matrix[at, 1] + 4, given.inner.bits[at], big, 0, 2]


def test_memory_that_changes_is_seen_and_none_is_freed():
    out = np.zeros(5)
    kernel = Sealed(look, Outer(np.zeros((2, 2)), False, Inner(np.zeros(2, np.uint16), np.zeros(1, bool)), -3,
                                (np.full(2, 4.0), np.zeros(5)), out))
    for _ in range(1000):
        kernel(0)
        given = kernel._argument
        given.matrix[0, 1] += 1
    assert out.tolist() == [999 + 2, -1, -3, 40, 0]


def test_what_is_no_whole_number_is_refused():
    with pytest.raises(TypeError):
        Sealed(look, (np.zeros(2), 0.5))
