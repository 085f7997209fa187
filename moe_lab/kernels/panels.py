"""Products of quantised panels: 16 rows of a matrix times a vector of bytes, as fast as the rows can be read.

Knows how a panel lies in memory. It is a run of blocks, one for each group of 32 columns, that is read front to
back: 16 float16 scales, then the rows' numbers interleaved, so that 64 bytes are four columns of all rows and no
sum has to cross lanes. A block of ``q8`` has 8 times 64 signed bytes; one of ``q4`` has 4 times 64, whose lower
four bits are columns 4 j to 4 j + 3 and whose upper ones are 16 further on, all plus 8. Knows no expert.

A product is exact within a group (integers); groups are added in float32, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from moe_lab.kernels import dots
from moe_lab.kernels.halves import widened_f16
from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import GROUP, PANEL
from moe_lab.kernels.pointers import bytes_at, floats_at, ints_at, shorts_at
from moe_lab.kernels.vectors import (
    LINE,
    add,
    fetch,
    fma,
    high_nibbles,
    load_bytes,
    load_f16,
    low_nibbles,
    mul,
    no_floats,
    no_ints,
    spread_f32,
    spread_i32,
    store_f32,
    to_floats,
)

SCALES = 2 * PANEL
"""Bytes of a block's scales."""
BLOCK = {8: SCALES + PANEL * GROUP, 4: SCALES + PANEL * GROUP // 2}
"""Bytes of a block, by the bits of a number."""

AHEAD = 8192
"""How many bytes ahead of the present block memory is asked for more. By itself a processor looks a few hundred
instructions ahead, which is too few bytes where a byte takes many instructions."""

_f, _i = np.float32, np.int32


class Products(NamedTuple):
    """How one path multiplies numbers of ``bits`` bits."""

    panel: Callable[..., Any]
    """``(weights, groups, bytes, scales, sums, out)``, addresses: 16 float32 ``out`` = panel times vector."""
    above: int
    """The unsigned form of a weight that it multiplies, minus the weight (see ``groups.quantise``)."""


def products(path: str, bits: int) -> Products:
    """The products of a path of ``instructions.NEEDS``; what it needs must be there before they are compiled."""
    if path == "portable":
        return Products(panel_q8, 0) if bits == 8 else Products(panel_q4, 8)
    block, above = _block(path, bits)
    size, asks = BLOCK[bits], (path, bits) != ("avx512", 8)

    @jit(helper=True)
    def panel(weights, groups, x, scales, sums, out):  # type: ignore[no-untyped-def]
        total = no_floats()
        for g in range(groups):
            if asks:
                for line in range(0, size, LINE):
                    fetch(weights + AHEAD + line)
            exact = to_floats(block(weights + SCALES, x, spread_i32(sums)))
            total = fma(exact, mul(load_f16(weights), spread_f32(scales)), total)
            weights, x, scales, sums = weights + size, x + GROUP, scales + 4, sums + 4
        store_f32(out, total)

    return Products(panel, above)


class RowProducts(NamedTuple):
    """How one path multiplies panels by many vectors, which lie one after the other. The bits are those of
    ``Products.panel``."""

    one: Callable[..., Any]
    """``(weights, groups, count, bytes, scales, sums, out, step)``: a panel times ``count`` vectors; their products,
    16 float32 each, go to ``out``, ``out`` + ``step``, ..."""
    two: Callable[..., Any]
    """``(weights, groups, count, bytes, scales, sums, out, other, step)``: the same, and the panel that follows to
    ``other``, ``other`` + ``step``, ..."""


def row_products(path: str, bits: int) -> RowProducts:
    """The products of a path with many vectors. Where registers are many and wide, four vectors share one reading of
    the weights, and two panels one reading of the vectors."""
    one, size = _one_panel(path, bits), BLOCK[bits]
    if path != "avx512":

        @jit(helper=True)
        def one_by_one(weights, groups, count, x, scales, sums, out, other, step):  # type: ignore[no-untyped-def]
            one(weights, groups, count, x, scales, sums, out, step)
            one(weights + groups * size, groups, count, x, scales, sums, other, step)

        return RowProducts(one, one_by_one)
    four = _four_vectors_two_panels(bits)

    @jit(helper=True)
    def two(weights, groups, count, x, scales, sums, out, other, step):  # type: ignore[no-untyped-def]
        whole = count - count % 4
        for m in range(0, whole, 4):
            place = m * 4 * groups
            four(weights, groups, x + m * GROUP * groups, scales + place, sums + place, out + m * step,
                 other + m * step, step)
        if whole < count:
            place = whole * 4 * groups
            x, scales, sums = x + whole * GROUP * groups, scales + place, sums + place
            one(weights, groups, count - whole, x, scales, sums, out + whole * step, step)
            one(weights + groups * size, groups, count - whole, x, scales, sums, other + whole * step, step)

    return RowProducts(one, two)


def _four_vectors_two_panels(bits: int) -> Callable[..., Any]:
    """``RowProducts.two`` of four vectors. 32 registers of 64 bytes hold sixteen sums, and what is loaded of a panel
    meets four vectors, what is loaded of a vector two panels."""
    size, dot, nibbles = BLOCK[bits], dots.dot_avx512, bits == 4

    @jit(inline=True)
    def numbers(w, j):  # type: ignore[no-untyped-def]
        if not nibbles:
            return dots.flip_signs(load_bytes(w + 64 * j))
        pairs = load_bytes(w + 64 * (j // 2))
        return high_nibbles(pairs) if j % 2 else low_nibbles(pairs)

    @jit(inline=True)
    def column(j):  # type: ignore[no-untyped-def]
        return 4 * (j // 2) + 16 * (j % 2) if nibbles else 4 * j

    @jit(helper=True)
    def four(weights, groups, x, scales, sums, out, other, step):  # type: ignore[no-untyped-def]
        a, b, c, d = no_floats(), no_floats(), no_floats(), no_floats()         # the panel at ``weights``
        e, f, g, h = no_floats(), no_floats(), no_floats(), no_floats()         # and the other
        wide, high, panel = GROUP * groups, 4 * groups, size * groups
        for _ in range(groups):
            ia, ib = spread_i32(sums), spread_i32(sums + high)
            ic, id = spread_i32(sums + 2 * high), spread_i32(sums + 3 * high)
            ie, i_f, ig, ih = ia, ib, ic, id
            for j in range(8):
                w, v = numbers(weights + SCALES, j), numbers(weights + panel + SCALES, j)
                at = x + column(j)
                y = spread_i32(at)
                ia, ie = dot(ia, w, y), dot(ie, v, y)
                y = spread_i32(at + wide)
                ib, i_f = dot(ib, w, y), dot(i_f, v, y)
                y = spread_i32(at + 2 * wide)
                ic, ig = dot(ic, w, y), dot(ig, v, y)
                y = spread_i32(at + 3 * wide)
                id, ih = dot(id, w, y), dot(ih, v, y)
            s, t = load_f16(weights), load_f16(weights + panel)
            y = spread_f32(scales)
            a, e = fma(to_floats(ia), mul(s, y), a), fma(to_floats(ie), mul(t, y), e)
            y = spread_f32(scales + high)
            b, f = fma(to_floats(ib), mul(s, y), b), fma(to_floats(i_f), mul(t, y), f)
            y = spread_f32(scales + 2 * high)
            c, g = fma(to_floats(ic), mul(s, y), c), fma(to_floats(ig), mul(t, y), g)
            y = spread_f32(scales + 3 * high)
            d, h = fma(to_floats(id), mul(s, y), d), fma(to_floats(ih), mul(t, y), h)
            weights, x, scales, sums = weights + size, x + GROUP, scales + 4, sums + 4
        store_f32(out, a)
        store_f32(out + step, b)
        store_f32(out + 2 * step, c)
        store_f32(out + 3 * step, d)
        store_f32(other, e)
        store_f32(other + step, f)
        store_f32(other + 2 * step, g)
        store_f32(other + 3 * step, h)

    return four


def _one_panel(path: str, bits: int) -> Callable[..., Any]:
    """``RowProducts.one``."""
    panel, size = products(path, bits).panel, BLOCK[bits]
    if path not in ("avx512", "avxvnni") and (path, bits) != ("avx2", 4):

        @jit(helper=True)
        def one_by_one(weights, groups, count, x, scales, sums, out, step):  # type: ignore[no-untyped-def]
            for m in range(count):
                panel(weights, groups, x + m * GROUP * groups, scales + m * 4 * groups, sums + m * 4 * groups,
                      out + m * step)

        return one_by_one
    block, _ = _block(path, bits)

    @jit(helper=True)
    def four(weights, groups, x, scales, sums, out, step):  # type: ignore[no-untyped-def]
        a, b, c, d = no_floats(), no_floats(), no_floats(), no_floats()
        wide, high = GROUP * groups, 4 * groups         # from a vector to the next: its bytes; its scales, its sums
        for g in range(groups):
            w, scale = weights + SCALES, load_f16(weights)
            a = fma(to_floats(block(w, x, spread_i32(sums))), mul(scale, spread_f32(scales)), a)
            b = fma(to_floats(block(w, x + wide, spread_i32(sums + high))),
                    mul(scale, spread_f32(scales + high)), b)
            c = fma(to_floats(block(w, x + 2 * wide, spread_i32(sums + 2 * high))),
                    mul(scale, spread_f32(scales + 2 * high)), c)
            d = fma(to_floats(block(w, x + 3 * wide, spread_i32(sums + 3 * high))),
                    mul(scale, spread_f32(scales + 3 * high)), d)
            weights, x, scales, sums = weights + size, x + GROUP, scales + 4, sums + 4
        store_f32(out, a)
        store_f32(out + step, b)
        store_f32(out + 2 * step, c)
        store_f32(out + 3 * step, d)

    @jit(helper=True)
    def by_fours(weights, groups, count, x, scales, sums, out, step):  # type: ignore[no-untyped-def]
        whole = count - count % 4
        for m in range(0, whole, 4):
            place = m * 4 * groups
            four(weights, groups, x + m * GROUP * groups, scales + place, sums + place, out + m * step, step)
        for m in range(whole, count):
            place = m * 4 * groups
            panel(weights, groups, x + m * GROUP * groups, scales + place, sums + place, out + m * step)

    return by_fours


def _block(path: str, bits: int) -> tuple[Callable[..., Any], int]:
    """``(weights, bytes, first) -> first + 32 columns of 16 rows times bytes``, in int32, and ``Products.above``."""
    if path == "avx2":
        return (_eight(dots.dot_avx2, False), 0) if bits == 8 else (_four_avx2, 8)
    dot, unsigned = {"avx512": (dots.dot_avx512, True), "avxvnni": (dots.dot_avxvnni, True),
                     "neon": (dots.dot_neon, False)}[path]
    return (_eight(dot, unsigned), 128 * unsigned) if bits == 8 else (_four(dot), 8)


def _eight(dot: Callable[..., Any], unsigned: bool) -> Callable[..., Any]:
    @jit(inline=True)
    def weight(address):  # type: ignore[no-untyped-def]
        return dots.flip_signs(load_bytes(address)) if unsigned else load_bytes(address)

    @jit(inline=True)
    def block(w, x, first):  # type: ignore[no-untyped-def]
        second = no_ints()                          # two sums, so that one dot need not wait for the other
        for j in range(0, 8, 2):
            first = dot(first, weight(w + 64 * j), spread_i32(x + 4 * j))
            second = dot(second, weight(w + 64 * j + 64), spread_i32(x + 4 * j + 4))
        return add(first, second)

    return block


def _four(dot: Callable[..., Any]) -> Callable[..., Any]:
    @jit(inline=True)
    def block(w, x, first):  # type: ignore[no-untyped-def]
        second = no_ints()
        for j in range(4):
            pairs = load_bytes(w + 64 * j)
            first = dot(first, low_nibbles(pairs), spread_i32(x + 4 * j))
            second = dot(second, high_nibbles(pairs), spread_i32(x + 4 * j + 16))
        return add(first, second)

    return block


@jit(inline=True)
def _four_avx2(w, x, first):  # type: ignore[no-untyped-def]
    shorts = no_ints()
    for j in range(4):
        pairs = load_bytes(w + 64 * j)
        shorts = dots.dot_in_shorts_avx2(shorts, low_nibbles(pairs), spread_i32(x + 4 * j))
        shorts = dots.dot_in_shorts_avx2(shorts, high_nibbles(pairs), spread_i32(x + 4 * j + 16))
    return add(first, dots.sum_shorts_avx2(shorts))


# --- plain loops ----------------------------------------------------------------------------------------
#
# The spelling matters (benchmarks/expert_kernel.py): the loop over the 16 rows is the inner one that LLVM makes
# vectors of, so its length is not a constant, and every sum says that it stays an int32.


@jit(helper=True)
def _four_signed(four, v, at):  # type: ignore[no-untyped-def]
    """The four signed bytes of an int32 times v[at] to v[at + 3]; in pairs, for which there is an instruction."""
    a, b = _i(_i(four << _i(24)) >> _i(24)), _i(_i(four << _i(16)) >> _i(24))
    c, d = _i(_i(four << _i(8)) >> _i(24)), _i(four >> _i(24))
    return _i(_i(_i(a * _i(v[at])) + _i(b * _i(v[at + 1]))) + _i(_i(c * _i(v[at + 2])) + _i(d * _i(v[at + 3]))))


@jit(helper=True)
def _four_small(four, v, at):  # type: ignore[no-untyped-def]
    """The same of the lower four bits of each byte, unsigned."""
    a, b = _i(four & _i(15)), _i(_i(four >> _i(8)) & _i(15))
    c, d = _i(_i(four >> _i(16)) & _i(15)), _i(_i(four >> _i(24)) & _i(15))
    return _i(_i(_i(a * _i(v[at])) + _i(b * _i(v[at + 1]))) + _i(_i(c * _i(v[at + 2])) + _i(d * _i(v[at + 3]))))


@jit(reorder=True, helper=True)
def panel_q8(weights, groups, x, scales, sums, out):  # type: ignore[no-untyped-def]
    """``Products.panel`` for eight bits."""
    result, factors = floats_at(out, PANEL), floats_at(scales, groups)
    result[:] = 0
    for g in range(groups):
        block, factor = weights + g * 544, factors[g]
        scale, words, v = shorts_at(block, PANEL), ints_at(block + 32, 128), bytes_at(x + 32 * g, 32)
        for r in range(scale.size):
            total = _i(0)
            for j in range(8):
                total = _i(total + _four_signed(words[16 * j + r], v, 4 * j))
            result[r] += _f(total) * (widened_f16(scale[r]) * factor)


@jit(reorder=True, helper=True)
def panel_q4(weights, groups, x, scales, sums, out):  # type: ignore[no-untyped-def]
    """``Products.panel`` for four bits."""
    result, factors, begin = floats_at(out, PANEL), floats_at(scales, groups), ints_at(sums, groups)
    result[:] = 0
    for g in range(groups):
        block, factor, first = weights + g * 288, factors[g], begin[g]
        scale, words, v = shorts_at(block, PANEL), ints_at(block + 32, 64), bytes_at(x + 32 * g, 32)
        for r in range(scale.size):
            total = first
            for j in range(4):
                pairs = words[16 * j + r]
                total = _i(total + _four_small(pairs, v, 4 * j))
                total = _i(total + _four_small(_i(pairs >> _i(4)), v, 4 * j + 16))
            result[r] += _f(total) * (widened_f16(scale[r]) * factor)
