"""Expert kernels of every format against their NumPy twins, and what must not depend on how they are called."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from moe_lab.errors import SettingError
from moe_lab.kernels.activation import ACTIVATIONS, TWINS
from moe_lab.kernels.formats import FORMATS, Quantised, bf16, q4, q8
from moe_lab.kernels.instructions import possible
from moe_lab.kernels.job import Job

QUANTISED = {f"{code.name} {path}": Quantised(code, path) for code in (q8.CODE, q4.CODE) for path in possible()}
FORMS = {"f32": FORMATS["f32"], "bf16": FORMATS["bf16"], **QUANTISED}
"""Every format, and the quantised ones in every form that this processor can run."""
SHAPES = [(64, 48), (256, 64), (33, 7), (1, 1), (130, 257)]
"""(D, F): the usual, the pocket model's, and some that fit no vector."""


def experts(rng, format, D, F, S):
    """An arena (S, slot_bytes) of random experts."""
    arena = np.zeros((S, format.slot_bytes(D, F)), np.uint8)
    for slot in arena:
        parts = [rng.standard_normal(s).astype(np.float32) / np.sqrt(s[1]) for s in ((F, D), (F, D), (D, F))]
        format.encode(*parts, slot)
    return arena


def problem(rng, format, D=256, F=64, S=12, K=8):
    arena = experts(rng, format, D, F, S)
    x = rng.standard_normal(D).astype(np.float32)
    return x, arena, rng.permutation(S)[:K].astype(np.int32), rng.random(K).astype(np.float32)


def token(format, x, arena, slots, gates, F, activation="silu"):
    out = np.full(x.size, np.nan, np.float32)
    format.ffn_token(x, arena, slots, gates, out, F, activation)
    return out


def relative(mine, theirs):
    """RMS of the difference over that of ``theirs``."""
    return float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("D", "F"), SHAPES)
@pytest.mark.parametrize("name", FORMS)
def test_a_token_equals_the_twin(rng, name, D, F, activation):
    format = FORMS[name]
    x, arena, slots, gates = problem(rng, format, D, F)
    mine = token(format, x, arena, slots, gates, F, activation)
    twin = format.ffn_token_slow(x, arena, slots, gates, F, activation)
    assert np.abs(mine - twin).max() <= 2e-6 * max(np.abs(twin).max(), 1e-3)


@pytest.mark.parametrize("name", FORMS)
def test_a_token_equals_torch_over_the_decoded_weights(rng, name):
    format = FORMS[name]
    x, arena, slots, gates = problem(rng, format)
    y = torch.zeros(256)
    for slot, gate in zip(slots, gates, strict=True):
        g, u, d = (torch.from_numpy(part) for part in format.decode(arena[slot], 256, 64))
        z = torch.from_numpy(x)
        y += float(gate) * (d @ (torch.nn.functional.silu(g @ z) * (u @ z)))
    mine, theirs = token(format, x, arena, slots, gates, 64), y.numpy()
    if name in QUANTISED:
        assert relative(mine, theirs) < 0.0125, "activations in bytes cost 0.0115 (relative RMS)"
    else:
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", FORMS)
def test_an_experts_error_is_within_the_formats_bound(rng, name):
    format, D, F, N = FORMS[name], 1024, 704, 4
    parts = [rng.standard_normal(s).astype(np.float32) / np.sqrt(s[1]) for s in ((F, D), (F, D), (D, F))]
    slot = np.zeros(format.slot_bytes(D, F), np.uint8)
    format.encode(*parts, slot)
    x, out = rng.standard_normal((N, D)).astype(np.float32), np.empty((N, D), np.float32)
    format.ffn_rows(x, slot, np.arange(N), np.ones(N, np.float32), out, F, "silu")
    gate, up, down = (part.astype(np.float64) for part in parts)
    exact = (TWINS["silu"](x @ gate.T) * (x @ up.T)) @ down.T
    assert 0.5 * format.error * (format.error > 1e-4) < relative(out, exact) <= format.error


@pytest.mark.parametrize("name", FORMS)
def test_rows_have_the_very_bits_of_tokens(rng, name):
    format = FORMS[name]
    arena, T, K = experts(rng, format, 256, 64, 3), 70, 3
    x, out = rng.standard_normal((T, 256)).astype(np.float32), np.full((T * K, 256), np.nan, np.float32)
    gates, places = rng.random(T * K).astype(np.float32), rng.permutation(T * K)[:135]
    format.ffn_rows(x, arena[1], places, gates, out, 64, "silu")
    for p in places:
        expected = token(format, x[p // K], arena, np.array([1], np.int32), gates[p : p + 1], 64)
        np.testing.assert_array_equal(out[p], expected)
    assert np.isnan(np.delete(out, places, 0)).all(), "nobody else's row was touched"


@pytest.mark.parametrize("name", FORMS)
def test_a_token_again_and_again_has_the_very_bits_of_tokens(rng, name):
    format = FORMS[name]
    x, arena, slots, gates = problem(rng, format)
    out = np.full(256, np.nan, np.float32)
    again = format.token_again(Job(256, 64, slots.size, 0), x, arena, slots, gates, out)
    for _ in range(3):
        x[:], gates[:], slots[:] = rng.standard_normal(256), rng.random(slots.size), rng.permutation(12)[: slots.size]
        slots[1] = -1
        again()
        np.testing.assert_array_equal(out, token(format, x, arena, slots, gates, 64))


@pytest.mark.parametrize("name", FORMS)
def test_threads_change_no_bit(rng, name):
    format = FORMS[name]
    x, arena, slots, gates = problem(rng, format)
    expected, others = token(format, x, arena, slots, gates, 64), []

    def run():
        others.extend(token(format, x, arena, slots, gates, 64) for _ in range(200))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(others) == 800
    assert all(np.array_equal(expected, other) for other in others)


@pytest.mark.parametrize("name", FORMS)
def test_where_an_expert_lies_changes_no_bit(rng, name):
    format = FORMS[name]
    x, arena, slots, gates = problem(rng, format)
    expected = token(format, x, arena, slots, gates, 64)
    moved = np.zeros((12, arena.shape[1] + 64), np.uint8)
    order = rng.permutation(12)
    moved[order, : arena.shape[1]] = arena
    np.testing.assert_array_equal(expected, token(format, x, moved, order[slots].astype(np.int32), gates, 64))


@pytest.mark.parametrize("name", FORMS)
def test_empty_places_are_passed_over(rng, name):
    format = FORMS[name]
    x, arena, slots, gates = problem(rng, format)
    some = slots.copy()
    some[[2, 5]] = -1
    kept = some >= 0
    without = token(format, x, arena, slots[kept], gates[kept], 64)
    np.testing.assert_array_equal(token(format, x, arena, some, gates, 64), without)
    assert (token(format, x, arena, np.full(8, -1, np.int32), gates, 64) == 0).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", FORMS)
def test_a_poisoned_input_comes_out_poisoned(rng, name, poison):
    format = FORMS[name]
    x, arena, slots, gates = problem(rng, format)
    x[77] = poison
    assert not np.isfinite(token(format, x, arena, slots, gates, 64)).any()


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("name", FORMS)
def test_a_poisoned_weight_comes_out_where_the_twin_says(rng, name, poison, part):
    format = FORMS[name]
    x, arena, slots, gates = problem(rng, format)
    parts = [p.copy() for p in format.decode(arena[slots[3]], 256, 64)]
    parts[part][5, 9] = poison
    format.encode(*parts, arena[slots[3]])
    mine = token(format, x, arena, slots, gates, 64)
    with np.errstate(invalid="ignore"):
        twin = format.ffn_token_slow(x, arena, slots, gates, 64, "silu")
    np.testing.assert_array_equal(np.isnan(mine), np.isnan(twin))
    np.testing.assert_array_equal(np.isinf(mine), np.isinf(twin))
    assert not np.isfinite(mine).all()


@pytest.mark.parametrize("name", FORMS)
def test_large_gate_values_do_not_overflow(rng, name):
    format = FORMS[name]
    x, arena, slots, gates = problem(rng, format)
    mine = token(format, x * 300, arena, slots, gates, 64)
    twin = format.ffn_token_slow(x * 300, arena, slots, gates, 64, "silu")
    np.testing.assert_allclose(mine, twin, rtol=1e-3, atol=1e-5 * np.abs(twin).max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_twins_are_torchs(activation):
    F = torch.nn.functional
    tanh = lambda x: F.gelu(x, approximate="tanh")  # noqa: E731
    theirs = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": tanh, "relu": F.relu}[activation]
    x = np.linspace(-8, 8, 200)
    np.testing.assert_allclose(TWINS[activation](x), theirs(torch.from_numpy(x)), atol=1e-12)


@pytest.mark.parametrize("name", ["f32", "bf16"])
def test_encode_and_decode_are_each_others_inverse_on_what_fits(rng, name):
    format = FORMS[name]
    parts = [bf16.widen_bf16(bf16.round_bf16(rng.standard_normal(s))) for s in ((7, 9), (7, 9), (9, 7))]
    slot = np.full(format.slot_bytes(9, 7) + 5, 3, np.uint8)
    format.encode(*parts, slot)
    for mine, original in zip(format.decode(slot, 9, 7), parts, strict=True):
        np.testing.assert_array_equal(mine, original)
    assert (slot[-5:] == 3).all()


def test_f32_is_decoded_without_a_copy(rng):
    arena = experts(rng, FORMATS["f32"], 9, 7, 1)
    assert all(np.shares_memory(part, arena) for part in FORMATS["f32"].decode(arena[0], 9, 7))


def test_rounding_to_bfloat16_is_torchs_for_every_kind_of_number(rng):
    x = np.concatenate([
        rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32),
        np.array([0, -0.0, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 1.00390625, 1.01171875], np.float32),
    ])
    mine, theirs = bf16.widen_bf16(bf16.round_bf16(x)), torch.from_numpy(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(np.isnan(mine), np.isnan(x))
    np.testing.assert_array_equal(mine[~np.isnan(x)], theirs[~np.isnan(x)])


def test_an_unknown_activation_names_the_known_ones(rng):
    x, arena, slots, gates = problem(rng, FORMATS["f32"])
    with pytest.raises(SettingError, match="silu, gelu, gelu_tanh, relu"):
        token(FORMATS["f32"], x, arena, slots, gates, 64, "mish")


@pytest.mark.parametrize("name", FORMS)
def test_a_format_says_its_own_name_and_size(name):
    format = FORMS[name]
    assert format.name == name.split()[0]
    assert format.slot_bytes(256, 64) == 3 * 256 * 64 * {"f32": 4, "bf16": 2, "q8": 17 / 16, "q4": 9 / 16}[format.name]


@pytest.mark.parametrize("name", FORMS)
def test_all_experts_at_once_and_one_alone(rng, name):
    format = FORMS[name]
    x, arena, slots, gates = problem(rng, format, S=8, K=8)
    parts = [token(format, x, arena, slots[k : k + 1], gates[k : k + 1], 64) for k in range(8)]
    np.testing.assert_allclose(token(format, x, arena, slots, gates, 64), sum(parts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_an_expert_of_zeros_gives_zeros(rng, name):
    format = FORMS[name]
    arena = np.full((1, format.slot_bytes(33, 40)), 77, np.uint8)
    format.encode(*(np.zeros(s, np.float32) for s in ((40, 33), (40, 33), (33, 40))), arena[0])
    x = rng.standard_normal(33).astype(np.float32)
    assert (token(format, x, arena, np.zeros(1, np.int32), np.ones(1, np.float32), 40) == 0).all()


@pytest.mark.parametrize("name", FORMS)
def test_denormal_inputs_and_weights_give_next_to_nothing(rng, name):
    format = FORMS[name]
    x, arena, slots, gates = problem(rng, format)
    assert np.abs(token(format, x * np.float32(1e-42), arena, slots, gates, 64)).max() < 1e-38
    parts = [np.full(s, 1e-42, np.float32) for s in ((64, 256), (64, 256), (256, 64))]
    format.encode(*parts, arena[slots[0]])
    assert np.abs(token(format, x, arena, slots[:1], gates[:1], 64)).max() < 1e-38


@pytest.mark.parametrize("kind", ["bits of bfloat16", "float16"])
@pytest.mark.parametrize("name", ["f32", "bf16", "q8 portable", "q4 portable"])
def test_matrices_of_a_file_encode_as_their_float32_does(rng, name, kind):
    format = FORMS[name]
    wide = [rng.standard_normal(s).astype(np.float32) for s in ((40, 70), (40, 70), (70, 40))]
    if kind == "float16":
        given = [part.astype(np.float16) for part in wide]
        wide = [part.astype(np.float32) for part in given]
    else:
        given = [bf16.round_bf16(part) for part in wide]
        wide = [bf16.widen_bf16(part) for part in given]
    slots = np.zeros((2, format.slot_bytes(70, 40)), np.uint8)
    format.encode(*given, slots[0])
    format.encode(*wide, slots[1])
    np.testing.assert_array_equal(*slots)
