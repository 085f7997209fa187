"""Products and sums of stored rows against NumPy, for rows and columns that fill neither streams nor vectors."""

from __future__ import annotations

import numpy as np
import pytest

from moe_lab.kernels.dense import product
from moe_lab.kernels.formats.bf16 import round_bf16, widen_bf16
from moe_lab.kernels.jit import jit
from moe_lab.kernels.streams import SUMS


@jit(cache=False)
def times(w, x, y):
    product(w, x, y)


def problem(rng, rows, columns, kind):
    w = rng.standard_normal((rows, columns)).astype(np.float32)
    return (round_bf16(w) if kind == "bf16" else w), rng.standard_normal(columns).astype(np.float32)


def result(w, x):
    y = np.full(len(w), np.nan, np.float32)
    times(w, x, y)
    return y


@pytest.mark.parametrize("kind", ["f32", "bf16"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 16), (4, 15), (64, 256), (67, 130), (0, 8), (5, 0)])
def test_a_product_equals_numpy(rng, rows, columns, kind):
    w, x = problem(rng, rows, columns, kind)
    exact = (widen_bf16(w) if kind == "bf16" else w).astype(np.float64) @ x
    np.testing.assert_allclose(result(w, x), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_a_rows_number_is_the_same_bit_for_bit_whatever_rows_stand_beside_it(rng, kind):
    w, x = problem(rng, 23, 70, kind)
    whole = result(w, x)
    for begin, end in ((0, 1), (3, 10), (20, 23), (1, 22)):
        assert result(w[begin:end], x).tobytes() == whole[begin:end].tobytes()


def test_a_matrix_that_lies_column_by_column_has_the_same_product(rng):
    w, x = problem(rng, 9, 40, "f32")
    np.testing.assert_allclose(result(np.asfortranarray(w), x), result(w, x), rtol=1e-5, atol=1e-5)


def test_what_is_no_number_stays_in_its_row(rng):
    w, x = problem(rng, 8, 33, "f32")
    w[2, 5], w[6, 32] = np.nan, np.inf
    y = result(w, x)
    assert np.isnan(y[2]) and np.isinf(y[6]) and np.isfinite(np.delete(y, [2, 6])).all()


@pytest.mark.parametrize("kind", ["f32", "bf16"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 16), (4, 15), (6, 64), (64, 256), (67, 151), (0, 8), (5, 0)])
def test_a_weighted_sum_of_rows_equals_numpy(rng, rows, columns, kind):
    w, _ = problem(rng, rows, columns, kind)
    shares, out = rng.standard_normal(rows + 2).astype(np.float32), np.full(columns, np.nan, np.float32)
    weighted = SUMS[w.dtype.name]

    @jit(cache=False)
    def total(w, shares, out):
        weighted(w.ctypes.data, w.shape[0], w.shape[1], shares, out, 0)

    total(w, shares, out)
    wide = (widen_bf16(w) if kind == "bf16" else w).astype(np.float64)
    np.testing.assert_allclose(out, shares[:rows].astype(np.float64) @ wide, rtol=1e-5, atol=1e-5)
