"""The decode kernels against their NumPy twins, in all variants of a layer, with stored float32 and bfloat16."""

from __future__ import annotations

import numpy as np
import pytest

from moe_lab.kernels.decoder import Attention, Layer, Room, decode_layer
from moe_lab.kernels.decoder_slow import attend_slow, gated_ffn_slow, rms_norm_slow, to_router_slow, wide
from moe_lab.kernels.dense import GatedFFN, head, look_up
from moe_lab.kernels.formats.bf16 import round_bf16
from moe_lab.kernels.jit import jit
from moe_lab.kernels.sealed import Sealed
from moe_lab.kernels.stored import stored, value

D, H, S, N, E, F = 24, 4, 6, 9, 7, 10
NONE = np.empty(0, np.float32)


class Parts:
    """Random weights of one layer."""

    def __init__(self, seed: int, kind: str, G: int = 2, norms: str = "none", biases: bool = False,
                 limit: float = np.inf, shared: bool = False, door: bool = False) -> None:
        draw = np.random.default_rng(seed)
        self.G, self.kind = G, kind

        def vector(n: int) -> np.ndarray:
            return draw.normal(size=n).astype(np.float32)

        def matrix(rows: int, columns: int) -> np.ndarray:
            w = draw.normal(size=(rows, columns)).astype(np.float32) / 3
            return round_bf16(w) if kind == "bf16" else w

        bias = vector if biases else lambda n: NONE
        wide_norm = {"none": lambda n: NONE, "each": lambda n: vector(S), "all": vector}[norms]
        self.attention = Attention(
            vector(D), matrix(H * S, D), matrix(G * S, D), matrix(G * S, D), matrix(D, H * S), bias(H * S), bias(G * S),
            bias(G * S), bias(D), wide_norm(H * S), wide_norm(G * S), np.array([1e-5, limit], np.float32))
        self.norm, self.router = vector(D), matrix(E, D)
        f = F if shared else 0
        self.ffn = GatedFFN(matrix(f, D), matrix(f, D), matrix(D, f), vector(D) if door else NONE)
        self.cos, self.sin = draw.normal(size=(2, N, S)).astype(np.float32)
        self.xs = draw.normal(size=(N, D)).astype(np.float32)

    def memory(self) -> np.ndarray:
        return np.zeros((self.G, N, S), np.uint16 if self.kind == "bf16" else np.float32)

    def room(self) -> Room:
        sizes = D, (H, S), (self.G, S), (self.G, S), (H, S), D, N, 2 * F + D
        return Room(*(np.zeros(size, np.float32) for size in sizes))


VARIANTS = {
    "mixtral": dict(),
    "olmoe": dict(G=4, norms="all"),
    "qwen3": dict(norms="each"),
    "qwen2": dict(G=1, biases=True, shared=True, door=True),
    "a shared expert without a door": dict(shared=True),
    "clipped": dict(limit=0.4, biases=True),
}


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("kind", ["f32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_text_through_a_layer_equals_the_numpy_twin(variant, kind, softmax):
    p = Parts(3, kind, **VARIANTS[variant])
    keys, values, slow_keys, slow_values = (p.memory() for _ in range(4))
    x, room, logits, weights = np.zeros(D, np.float32), p.room(), np.zeros(E, np.float32), np.zeros(E, np.float32)
    layer = Sealed(decode_layer, Layer(x, p.attention, p.cos, p.sin, keys, values, room, p.norm, p.router, softmax,
                                       logits, weights, p.ffn, 0))
    for t in range(N):
        x[:] = p.xs[t]
        layer(t)
        after = attend_slow(p.xs[t], p.attention, p.cos[t], p.sin[t], slow_keys, slow_values, t, H)
        want, h, z, w = to_router_slow(after, p.norm, 1e-5, p.router, softmax, p.ffn, "silu")
        tolerance = dict(rtol=2e-2, atol=2e-2) if kind == "bf16" else dict(rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(x, want, **tolerance)
        np.testing.assert_allclose(room.h, h, **tolerance)
        np.testing.assert_allclose(logits, z, **tolerance)
        np.testing.assert_allclose(weights, w, **tolerance)
        slow_keys[:], slow_values[:] = keys, values       # a bfloat16 rounded otherwise is not carried on
    assert np.abs(weights.sum() - 1) < 1e-5 or not softmax


@pytest.mark.parametrize("activation", [(0, "silu"), (1, "gelu"), (3, "relu")])
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_a_dense_layer_equals_the_numpy_twin(kind, activation):
    p = Parts(5, kind, shared=True)
    keys, values = p.memory(), p.memory()
    x = p.xs[0].copy()
    none = np.empty((0, 0), np.float32)
    Sealed(decode_layer, Layer(x, p.attention, p.cos, p.sin, keys, values, p.room(), p.norm, none, False, NONE, NONE,
                               p.ffn, activation[0]))(0)
    want = attend_slow(p.xs[0], p.attention, p.cos[0], p.sin[0], p.memory(), p.memory(), 0, H)
    want = want + gated_ffn_slow(rms_norm_slow(want, p.norm, 1e-5), p.ffn, activation[1])
    np.testing.assert_allclose(x, want, rtol=2e-2 if kind == "bf16" else 2e-5, atol=2e-2 if kind == "bf16" else 2e-5)


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_head_and_embedding_equal_the_formula(kind):
    p = Parts(7, kind)
    x, y = np.zeros(D, np.float32), np.zeros(E, np.float32)
    look_up(p.router, 4, x)
    np.testing.assert_array_equal(x, wide(p.router)[4].astype(np.float32))
    head(x, p.norm, np.float32(1e-5), p.router, np.zeros(D, np.float32), y)
    np.testing.assert_allclose(y, wide(p.router) @ rms_norm_slow(wide(p.router)[4], p.norm, 1e-5), rtol=1e-5, atol=1e-5)


def test_numbers_are_stored_as_numpy_rounds_them():
    @jit(cache=False)
    def both(x, like):
        return value(stored(x, like))

    draw = np.random.default_rng(0).normal(size=200).astype(np.float32)
    for x in [*draw, np.float32(np.inf), np.float32(-0.0), np.float32(1e-40)]:
        bits = round_bf16(np.array([x]))
        assert both(x, bits[0]) == value(bits[0])
        assert both(x, x) == x
    assert np.isnan(both(np.float32(np.nan), np.uint16(0)))
