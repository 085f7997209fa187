"""One token through a decoder layer but for its routed experts: norm, attention over all earlier tokens, norm, router.

Knows the pre-norm layer of the Llama line with its variants: biases, a norm on queries and keys (over each head or
over all of them), clipping, grouped keys and values. Matrices and stored keys are float32 or bfloat16 bits; all else
is float32. Knows no expert. The NumPy twins stand in ``decoder_slow``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba.extending import overload

from moe_lab.kernels.activation import exponential, soft_max
from moe_lab.kernels.dense import GatedFFN, Weights, add, gated_ffn, product, rms_norm
from moe_lab.kernels.jit import copied, jit
from moe_lab.kernels.stored import stored
from moe_lab.kernels.streams import SCORES, SUMS

_f = np.float32


class Attention(NamedTuple):
    """Weights of one attention: H heads of S numbers, G groups of keys and values. Empty arrays for what is absent."""

    norm: np.ndarray
    """(D,) float32, before it."""
    q: Weights
    """(H * S, D)."""
    k: Weights
    """(G * S, D)."""
    v: Weights
    """(G * S, D)."""
    o: Weights
    """(D, H * S)."""
    q_bias: np.ndarray
    """(H * S,) float32."""
    k_bias: np.ndarray
    """(G * S,) float32."""
    v_bias: np.ndarray
    """(G * S,) float32."""
    o_bias: np.ndarray
    """(D,) float32."""
    q_norm: np.ndarray
    """(H * S,) or (S,) float32: over all heads, or over each."""
    k_norm: np.ndarray
    """(G * S,) or (S,) float32."""
    eps: np.ndarray
    """(2,) float32: of the norms, and the largest magnitude of q, k and v (infinity: unlimited)."""


class Room(NamedTuple):
    """Scratch memory of one run, float32."""

    h: np.ndarray
    """(D,): the normed hidden state."""
    q: np.ndarray
    """(H, S)."""
    k: np.ndarray
    """(G, S)."""
    v: np.ndarray
    """(G, S)."""
    mixed: np.ndarray
    """(H, S): the heads' outputs."""
    out: np.ndarray
    """(D,)."""
    scores: np.ndarray
    """(N,): of one head, for N tokens."""
    ffn: np.ndarray
    """(2 F + D,) for the largest dense FFN."""


class Layer(NamedTuple):
    """A decoder layer, and the memory that a token goes through it in."""

    x: np.ndarray
    """(D,) float32: the hidden state, updated. ``room.h`` holds what the experts take afterwards."""
    attention: Attention
    cos: np.ndarray
    """(N, S) float32, of each position, as the next."""
    sin: np.ndarray
    keys: np.ndarray
    """(G, N, S) float32 or bfloat16 bits, of all tokens so far, as the next."""
    values: np.ndarray
    room: Room
    norm: np.ndarray
    """(D,) float32, before router or FFN."""
    router: np.ndarray
    """(E, D). Empty: the layer has no experts."""
    softmax: bool
    """Whether gate weights are the softmax of the logits, or their sigmoid."""
    logits: np.ndarray
    """(E,) float32: the router's output."""
    weights: np.ndarray
    """(E,) float32: the raw gate weight of every expert."""
    ffn: GatedFFN
    """The shared expert (empty: none), or the FFN of a layer without experts."""
    activation: int
    """Its number in ``activation.ACTIVATIONS``."""


@jit(helper=True)
def _prepare(raw, bias, norm, eps, limit):  # type: ignore[no-untyped-def]
    """Bias, norm and clipping of projected queries, keys or values ``raw`` (heads, S), in place."""
    flat = raw.reshape(raw.size)
    add(flat, bias)
    if norm.size == raw.shape[1]:
        for head in range(raw.shape[0]):
            rms_norm(raw[head], norm, eps, raw[head])
    elif norm.size:
        rms_norm(flat, norm, eps, flat)
    if limit < np.inf:
        for i in range(flat.size):
            flat[i] = min(max(flat[i], -limit), limit)


@jit(helper=True)
def _rotate(heads, cos, sin):  # type: ignore[no-untyped-def]
    """Rotary embedding of each head of (heads, S), in place; cos and sin (S,) of the position."""
    half = heads.shape[1] // 2
    for head in range(heads.shape[0]):
        row = heads[head]
        for i in range(half):
            a, b = row[i], row[i + half]
            row[i] = a * cos[i] - b * sin[i]
            row[i + half] = b * cos[i + half] + a * sin[i + half]


def _mix(q, keys, values, n, scores, out, coming):  # type: ignore[no-untyped-def]
    """out (S,) = softmax(keys @ q / sqrt(S)) @ values over ``n`` tokens; keys and values (N, S). Those of a head are a
    short stretch of memory: while one is read the next is asked for, values after keys, then the keys at ``coming``."""
    raise NotImplementedError       # the kernels' own; see _mixed


@overload(_mix)
def _mixed(q, keys, values, n, scores, out, coming):  # type: ignore[no-untyped-def]
    scores_of, sum_of = SCORES[keys.dtype.name], SUMS[values.dtype.name]

    def mix(q, keys, values, n, scores, out, coming):  # type: ignore[no-untyped-def]
        scores, first, second = scores[:n], keys.ctypes.data, values.ctypes.data
        scores[:] = 0
        scores_of(first, n, q.size, q.ctypes.data, _f(1 / math.sqrt(q.size)), scores, second - first)
        soft_max(scores)
        sum_of(second, n, q.size, scores, out, coming - second)

    return mix


@jit(helper=True)
def _attend(x, a, cos, sin, keys, values, t, room):  # type: ignore[no-untyped-def]
    """x (D,) += attention of the token at position ``t``; its keys and values are stored in (G, N, S)."""
    eps, limit = a.eps[0], a.eps[1]
    H, S, G = room.q.shape[0], room.q.shape[1], keys.shape[0]
    rms_norm(x, a.norm, eps, room.h)
    product(a.q, room.h, room.q.reshape(H * S))
    product(a.k, room.h, room.k.reshape(G * S))
    product(a.v, room.h, room.v.reshape(G * S))
    _prepare(room.q, a.q_bias, a.q_norm, eps, limit)
    _prepare(room.k, a.k_bias, a.k_norm, eps, limit)
    _prepare(room.v, a.v_bias, a.v_bias[:0], eps, limit)
    _rotate(room.q, cos, sin)
    _rotate(room.k, cos, sin)
    for g in range(G):
        for i in range(S):
            keys[g, t, i] = stored(room.k[g, i], keys[g, t, i])
            values[g, t, i] = stored(room.v[g, i], values[g, t, i])
    for head in range(H):
        g, then = head // (H // G), min(head + 1, H - 1) // (H // G)
        _mix(room.q[head], keys[g], values[g], t + 1, room.scores, room.mixed[head], keys[then].ctypes.data)
    product(a.o, room.mixed.reshape(H * S), room.out)
    add(room.out, a.o_bias)
    add(x, room.out)


@jit(helper=True)
def decode_layer(layer, t):  # type: ignore[no-untyped-def]
    """The token at position ``t`` through a ``Layer``."""
    x, room = layer.x, layer.room
    _attend(x, layer.attention, layer.cos[t], layer.sin[t], layer.keys, layer.values, t, room)
    rms_norm(x, layer.norm, layer.attention.eps[0], room.h)
    if layer.router.shape[0]:
        product(layer.router, room.h, layer.logits)
        weights = layer.weights
        if layer.softmax:
            copied(layer.logits, weights)
            soft_max(weights)
        else:
            for e in range(weights.size):
                weights[e] = _f(1) / (_f(1) + exponential(-layer.logits[e]))
    if layer.ffn.gate.shape[0]:
        gated_ffn(room.h, layer.ffn, layer.activation, room.ffn, x)


__all__ = ["Attention", "GatedFFN", "Layer", "Room", "decode_layer"]
