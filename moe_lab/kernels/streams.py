"""Rows of stored numbers times a vector, and a weighted sum of rows: the products of everything that is not quantised.

Knows rows that lie one after the other, float32 or bfloat16 bits, and how to read them as fast as memory gives them:
for a product, row r of each quarter at the same time. Four rows that follow each other lie a power of two apart in
most models, where they stand in each other's way: they come at 60 % of that speed. A row's sum has an order of its
own, whatever rows stand beside it. Memory is named by address.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moe_lab.kernels.jit import jit
from moe_lab.kernels.pointers import floats_at, shorts_at
from moe_lab.kernels.stored import value
from moe_lab.kernels.vectors import (
    LANES,
    LINE,
    fetch,
    fma,
    four_totals,
    lane,
    load_bf16,
    load_f32,
    no_floats,
    spread,
    store_f32,
    total_f32,
)

_f = np.float32


def stream_product(load: Callable[..., Any], numbers_at: Callable[..., Any], item_bytes: int,
                   asks: bool = False) -> Callable[..., Any]:
    """The kernel ``(weights, rows, columns, x, factor, y, ahead)``: y (rows,) += factor * rows of ``weights`` times x.

    ``weights`` and ``x`` are addresses, of numbers that ``load`` reads by vectors and ``numbers_at`` as an array, and
    of float32; ``y`` is an array. ``asks``: as each line is read, that ``ahead`` bytes further on is asked for, which
    helps where what comes next lies elsewhere and is short. A long matrix is read faster without.
    """

    @jit(inline=True)
    def and_rest(whole, row, x, begin, columns):  # type: ignore[no-untyped-def]
        """The sum of a row: that of its vectors, then what fills none."""
        rest, left = numbers_at(row + item_bytes * begin, columns - begin), floats_at(x + 4 * begin, columns - begin)
        for k in range(left.size):
            whole += value(rest[k]) * left[k]
        return whole

    @jit(helper=True)
    def product(weights, rows, columns, x, factor, y, ahead):  # type: ignore[no-untyped-def]
        row_bytes, quarter, end = item_bytes * columns, rows // 4, columns - columns % LANES
        apart = quarter * row_bytes
        for r in range(quarter):
            p = weights + r * row_bytes
            q, s, t = p + apart, p + 2 * apart, p + 3 * apart
            a, b, c, d = no_floats(), no_floats(), no_floats(), no_floats()
            for k in range(0, end, LANES):
                v, at = load_f32(x + 4 * k), item_bytes * k
                if asks and at % LINE == 0:
                    fetch(p + ahead + at)
                    fetch(q + ahead + at)
                    fetch(s + ahead + at)
                    fetch(t + ahead + at)
                a, b = fma(load(p + at), v, a), fma(load(q + at), v, b)
                c, d = fma(load(s + at), v, c), fma(load(t + at), v, d)
            sums = four_totals(a, b, c, d)
            y[r] += factor * and_rest(lane(sums, 0), p, x, end, columns)
            y[r + quarter] += factor * and_rest(lane(sums, 1), q, x, end, columns)
            y[r + 2 * quarter] += factor * and_rest(lane(sums, 2), s, x, end, columns)
            y[r + 3 * quarter] += factor * and_rest(lane(sums, 3), t, x, end, columns)
        for r in range(4 * quarter, rows):
            p, a = weights + r * row_bytes, no_floats()
            for k in range(0, end, LANES):
                a = fma(load(p + item_bytes * k), load_f32(x + 4 * k), a)
            y[r] += factor * and_rest(total_f32(a), p, x, end, columns)

    return product


def stream_sum(load: Callable[..., Any], numbers_at: Callable[..., Any], item_bytes: int) -> Callable[..., Any]:
    """The kernel ``(rows, count, columns, shares, out, ahead)``: out (columns,) = sum of shares[t] * row t.

    ``rows`` is an address, ``shares`` (at least count,) and ``out`` are float32 arrays. Four vectors of columns at a
    time stay in registers while the rows go by; meanwhile the memory ``ahead`` bytes further on is asked for.
    """

    @jit(helper=True)
    def weighted(rows, count, columns, shares, out, ahead):  # type: ignore[no-untyped-def]
        row_bytes, to, end = item_bytes * columns, out.ctypes.data, columns - columns % LANES
        wide = columns - columns % (4 * LANES)
        for k in range(0, wide, 4 * LANES):
            p, a, b, c, d = rows + item_bytes * k, no_floats(), no_floats(), no_floats(), no_floats()
            for t in range(count):
                share = spread(shares[t])
                for line in range(0, 4 * item_bytes * LANES, LINE):
                    fetch(p + ahead + line)
                a, b = fma(load(p), share, a), fma(load(p + item_bytes * LANES), share, b)
                c = fma(load(p + 2 * item_bytes * LANES), share, c)
                d = fma(load(p + 3 * item_bytes * LANES), share, d)
                p += row_bytes
            store_f32(to + 4 * k, a)
            store_f32(to + 4 * (k + LANES), b)
            store_f32(to + 4 * (k + 2 * LANES), c)
            store_f32(to + 4 * (k + 3 * LANES), d)
        for k in range(wide, end, LANES):
            p, a = rows + item_bytes * k, no_floats()
            for t in range(count):
                a = fma(load(p), spread(shares[t]), a)
                p += row_bytes
            store_f32(to + 4 * k, a)
        numbers = numbers_at(rows, count * columns)
        for k in range(end, columns):
            out[k] = 0
            for t in range(count):
                out[k] += value(numbers[t * columns + k]) * shares[t]

    return weighted


PRODUCTS: dict[str, Callable[..., Any]] = {
    "float32": stream_product(load_f32, floats_at, 4),
    "uint16": stream_product(load_bf16, shorts_at, 2),
}
"""By NumPy's name of the type of a stored number."""
SCORES: dict[str, Callable[..., Any]] = {
    "float32": stream_product(load_f32, floats_at, 4, asks=True),
    "uint16": stream_product(load_bf16, shorts_at, 2, asks=True),
}
"""Likewise."""
SUMS: dict[str, Callable[..., Any]] = {
    "float32": stream_sum(load_f32, floats_at, 4),
    "uint16": stream_sum(load_bf16, shorts_at, 2),
}
"""Likewise."""
