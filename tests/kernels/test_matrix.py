"""Quantised matrices: their products against NumPy, on every path of instructions that this processor has."""

from __future__ import annotations

import numpy as np
import pytest

from moe_lab.kernels.decoder_slow import times
from moe_lab.kernels.dense import product
from moe_lab.kernels.formats.bf16 import round_bf16, widen_bf16
from moe_lab.kernels.formats.matrix import CODES, matrix_bytes, matrix_values, quantised_matrix, times_rows
from moe_lab.kernels.instructions import possible
from moe_lab.kernels.jit import jit

SHAPES = [(1, 1), (16, 32), (33, 70), (7, 200), (80, 31)]


@jit(cache=False)
def multiplied(m, x, y):
    product(m, x, y)


def random(R: int, C: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(R, C)).astype(np.float32), draw.normal(size=(5, C)).astype(np.float32)


@pytest.mark.parametrize("path", possible())
@pytest.mark.parametrize("format", CODES)
def test_a_product_equals_its_numpy_twin_whatever_the_shape(format, path):
    for R, C in SHAPES:
        w, xs = random(R, C)
        m, y = quantised_matrix(w, format, path), np.empty(R, np.float32)
        assert m.blocks.nbytes == matrix_bytes(R, C, format)
        for x in xs:
            multiplied(m, x, y)
            np.testing.assert_allclose(y, times(m, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", possible())
@pytest.mark.parametrize("format", CODES)
def test_many_rows_have_the_bits_of_each_alone(format, path):
    w, xs = random(33, 70)
    m, y = quantised_matrix(w, format, path), np.empty(33, np.float32)
    rows = times_rows(m, xs)
    assert rows.shape == (5, 33) and times_rows(m, xs[:0]).shape == (0, 33)
    for row, x in zip(rows, xs, strict=True):
        multiplied(m, x, y)
        np.testing.assert_array_equal(row, y)
    np.testing.assert_array_equal(times_rows(m, xs[::-2]), rows[::-2])      # rows that lie apart


@pytest.mark.parametrize(("format", "bound"), [("q8", 0.011), ("q4", 0.12)])
def test_a_product_is_as_close_as_the_format_promises(format, bound):
    w, xs = random(256, 512)
    exact = xs @ w.T
    error = np.sqrt(np.mean((times_rows(quantised_matrix(w, format), xs) - exact) ** 2) / np.mean(exact**2))
    assert 0 < error < bound


@pytest.mark.parametrize("format", CODES)
def test_bfloat16_bits_are_read_as_what_they_stand_for(format):
    bits = round_bf16(random(20, 40)[0])
    np.testing.assert_array_equal(matrix_values(quantised_matrix(bits, format)),
                                  matrix_values(quantised_matrix(widen_bf16(bits), format)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_spreads_to_the_rows_that_use_it(bad):
    w, xs = random(20, 70)
    xs[2, 40] = bad
    rows = times_rows(quantised_matrix(w, "q8"), xs)
    assert np.isnan(rows[2]).all() and np.isfinite(np.delete(rows, 2, 0)).all()
    w[3, 5] = bad
    rows = times_rows(quantised_matrix(w, "q8"), random(20, 70)[1])
    assert np.isnan(rows[:, 3]).all() and np.isfinite(np.delete(rows, 3, 1)).all()
