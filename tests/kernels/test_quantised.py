"""Quantising: what weights and activations become, against NumPy; and the products of every path over them."""

from __future__ import annotations

import numpy as np
import pytest

from moe_lab.kernels import crew, halves
from moe_lab.kernels.activation import ROUND, ROUND_BITS
from moe_lab.kernels.formats import FORMATS, Quantised, q4, q8
from moe_lab.kernels.formats.blocks import in_panels, matrices, out_of_panels, scales_of
from moe_lab.kernels.formats.encode import encode_expert
from moe_lab.kernels.groups import quantise, quantise_slow
from moe_lab.kernels.instructions import possible
from moe_lab.kernels.jit import jit

CODES = {"q8": q8.CODE, "q4": q4.CODE}
SHAPES = [(64, 48), (256, 64), (33, 7), (1, 1), (130, 257)]


def random_parts(rng, D, F, scale=1.0):
    return [(rng.standard_normal(s) * scale).astype(np.float32) for s in ((F, D), (F, D), (D, F))]


def encoded(format, parts):
    F, D = parts[0].shape
    slot = np.full(format.slot_bytes(D, F), 99, np.uint8)
    format.encode(*parts, slot)
    return slot


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 1e4])
@pytest.mark.parametrize(("D", "F"), SHAPES)
def test_bytes_are_encoded_as_the_twin_says(rng, D, F, scale):
    parts = random_parts(rng, D, F, scale)
    slot = encoded(FORMATS["q8"], parts)
    for blocks, part in zip(matrices(8, slot, D, F), parts, strict=True):
        numbers, scales = q8.quantise(part)
        np.testing.assert_array_equal(q8.numbers_of(blocks), numbers)
        np.testing.assert_array_equal(scales_of(blocks), scales)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
@pytest.mark.parametrize(("D", "F"), SHAPES)
def test_half_bytes_are_encoded_as_well_as_the_twin_does(rng, D, F, scale):
    """Where two scales fit equally well to the last bit, either may be taken."""
    parts = random_parts(rng, D, F, scale)
    slot = encoded(FORMATS["q4"], parts)
    for blocks, part in zip(matrices(4, slot, D, F), parts, strict=True):
        numbers, scales = q4.quantise(part)
        theirs = numbers * scales.astype(np.float32).transpose(0, 2, 1)[..., None]
        mine = q4.numbers_of(blocks) * scales_of(blocks).astype(np.float32).transpose(0, 2, 1)[..., None]
        w = in_panels(part)
        errors = [((found - w) ** 2).sum() for found in (mine, theirs)]
        assert errors[0] <= 1.002 * errors[1] + 1e-5 * np.square(w).max()
        full = (w != 0).all(-1)             # a few numbers in a group are met equally well by several scales
        assert full.sum() == 0 or (mine == theirs).all(-1)[full].mean() > 0.99


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 3e-8, 1e4])
def test_no_byte_is_off_by_more_than_half_a_scale(rng, scale):
    parts = random_parts(rng, 96, 40, scale)
    slot = encoded(FORMATS["q8"], parts)
    decoded = FORMATS["q8"].decode(slot, 96, 40)
    for blocks, mine, part in zip(matrices(8, slot, 96, 40), decoded, parts, strict=True):
        wide = np.repeat(scales_of(blocks).astype(np.float64).transpose(0, 2, 1)[..., None], 32, -1)
        half = out_of_panels(wide, *part.shape) / 2
        assert (np.abs(mine.astype(np.float64) - part) <= half * (1 + 1e-6)).all()


def test_the_search_beats_a_scale_that_puts_the_extreme_at_minus_eight(rng):
    w = rng.standard_normal((64, 1024)).astype(np.float32)
    numbers, scales = q4.quantise(w)
    mine = out_of_panels(numbers * scales.astype(np.float32).transpose(0, 2, 1)[..., None], 64, 1024)
    groups = w.reshape(64, -1, 32)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1) / -8
    plain = (np.clip(np.rint(groups / extreme), -8, 7) * extreme).reshape(w.shape)
    error, other = (np.linalg.norm(found - w) / np.linalg.norm(w) for found in (mine, plain))
    assert error < 0.082 < 0.085 < other


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e9])
@pytest.mark.parametrize("name", CODES)
def test_a_group_without_a_scale_decodes_to_nan_and_no_other_does(rng, name, poison):
    parts = random_parts(rng, 96, 40)
    parts[0][5, 40] = poison
    gate, up, down = FORMATS[name].decode(encoded(FORMATS[name], parts), 96, 40)
    assert np.isnan(gate[5, 32:64]).all() and np.isnan(gate).sum() == 32
    assert np.isfinite(up).all() and np.isfinite(down).all()


@pytest.mark.parametrize("name", CODES)
def test_an_expert_encoded_by_several_threads_has_the_same_bytes(rng, name):
    format, (D, F) = FORMATS[name], (130, 1070)
    parts = random_parts(rng, D, F)
    expected, helpers = encoded(format, parts), crew.Crew(3)
    for _ in range(20):
        slot = np.zeros(format.slot_bytes(D, F), np.uint8)
        encode_expert(format._encode, helpers.address, *parts, slot)
        np.testing.assert_array_equal(slot, expected)
    helpers.dismiss()


@jit(cache=False)
def quantised(*arguments):
    quantise(*arguments)


def activations(x, above=8):
    """``quantise`` of x (N,), N a multiple of 32."""
    groups = x.size // 32
    bytes, scales, sums = np.empty(x.size, np.int8), np.empty(groups, np.float32), np.empty(groups, np.int32)
    quantised(x.ctypes.data, groups, bytes.ctypes.data, scales.ctypes.data, sums.ctypes.data, above)
    return bytes.reshape(-1, 32), scales, sums


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e-29, 1e-33, 1e-42, 1e30])
def test_activations_become_the_bytes_of_the_twin(rng, scale):
    x = (rng.standard_normal(2048) * scale).astype(np.float32)
    x[64:96] = 0
    x[100], x[101] = x[96:128].max() * 4, -x[96:128].max() * 4
    bytes, scales, sums = activations(x)
    for mine, twin in zip((bytes, scales), quantise_slow(x), strict=True):
        np.testing.assert_array_equal(mine, twin)
    np.testing.assert_array_equal(sums, -8 * bytes.astype(int).sum(-1))
    assert np.abs(bytes.astype(int)).max() <= 127


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_group_of_activations_has_bytes_of_zero_and_a_scale_that_is_not_finite(rng, poison):
    x = rng.standard_normal(96).astype(np.float32)
    x[40] = poison
    bytes, scales, _ = activations(x)
    assert (bytes[1] == 0).all() and not np.isfinite(scales[1]) and np.isfinite(scales[[0, 2]]).all()
    for mine, twin in zip((bytes, scales), quantise_slow(x), strict=True):
        np.testing.assert_array_equal(mine, twin)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_all_paths_give_the_same_bits(rng, code):
    """Integer sums are exact and the rest is one multiplication and one fused addition a group, in order."""
    D, F, K, results = 130, 257, 3, []
    slots, gates, x = np.arange(K, dtype=np.int32), rng.random(K).astype(np.float32), rng.standard_normal(D)
    arena = np.stack([encoded(FORMATS[code.name], random_parts(rng, D, F)) for _ in range(K)])
    for path in possible():
        if path != "portable":
            out = np.empty(D, np.float32)
            Quantised(code, path).ffn_token(x.astype(np.float32), arena, slots, gates, out, F, "silu")
            results.append(out)
    assert all(np.array_equal(results[0], other) for other in results[1:])


@jit(cache=False)
def narrowed(x, nearest, ceiling):
    for i in range(x.size):
        nearest[i] = halves.nearest_f16(x[i])
        if x[i] >= 0:
            ceiling[i] = halves.ceiling_f16(x[i])


@jit(cache=False)
def widened(bits, wide):
    for i in range(bits.size):
        wide[i] = halves.widened_f16(bits[i])


def test_float16_is_widened_exactly_and_narrowed_as_numpy_does(rng):
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = np.empty(bits.size, np.float32)
    widened(bits, wide)
    np.testing.assert_array_equal(wide, bits.view(np.float16).astype(np.float32))
    finite = np.sort(wide[np.isfinite(wide)])
    middles = (finite[1:].astype(np.float64) + finite[:-1]) / 2
    odd = [65519, 65520, 1e30, np.inf, -np.inf, np.nan, 1e-45, -0.0]
    draws = rng.standard_normal(20_000) * np.repeat([1e-6, 1e3], 10_000)
    x = np.concatenate([wide, *(np.asarray(part, np.float32) for part in (middles, draws, odd))])
    nearest, ceiling = np.zeros(x.size, np.uint16), np.zeros(x.size, np.uint16)
    narrowed(x, nearest, ceiling)
    with np.errstate(over="ignore"):
        theirs, plus = x.astype(np.float16), x >= 0
        above = np.where(theirs.astype(np.float32) < x, np.nextafter(theirs, np.float16(np.inf)), theirs)
    np.testing.assert_array_equal(nearest.view(np.float16), theirs)
    np.testing.assert_array_equal(ceiling.view(np.float16)[plus], above[plus])


def test_the_rounding_number_is_what_its_bits_say():
    assert ROUND.view(np.int32) == ROUND_BITS
    x = np.array([0.5, 1.5, -2.5, 126.5, -0.49, 127], np.float32)
    np.testing.assert_array_equal((x + ROUND).view(np.int32) - ROUND_BITS, np.rint(x))
