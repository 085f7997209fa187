"""The decoder layer in NumPy, in float64: the formulas that ``decoder`` and ``dense`` are tested against."""

from __future__ import annotations

import math

import numpy as np

from moe_lab.kernels.activation import TWINS
from moe_lab.kernels.decoder import Attention
from moe_lab.kernels.dense import GatedFFN, Weights
from moe_lab.kernels.formats.bf16 import round_bf16, widen_bf16
from moe_lab.kernels.formats.matrix import matrix_values
from moe_lab.kernels.groups import quantise_slow


def wide(w: Weights) -> np.ndarray:
    """A stored matrix in float64."""
    if not isinstance(w, np.ndarray):
        return matrix_values(w).astype(np.float64)
    return (widen_bf16(w) if w.dtype == np.uint16 else w).astype(np.float64)


def times(w: Weights, x: np.ndarray) -> np.ndarray:
    """w @ x; a quantised matrix multiplies what its vector is quantised to."""
    if isinstance(w, np.ndarray):
        return wide(w) @ x
    numbers, scales = quantise_slow(x.astype(np.float32))
    return wide(w) @ (numbers * scales[..., None].astype(np.float64)).reshape(-1)[: x.size]


def rms_norm_slow(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """weight * x / sqrt(mean(x * x) + eps) over the last axis."""
    return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def gated_ffn_slow(x: np.ndarray, m: GatedFFN, activation: str) -> np.ndarray:
    """The output (D,) of a ``GatedFFN``."""
    out = times(m.down, TWINS[activation](times(m.gate, x)) * times(m.up, x))
    return out / (1 + math.exp(-float(m.door @ x))) if m.door.size else out


def attend_slow(x: np.ndarray, a: Attention, cos: np.ndarray, sin: np.ndarray, keys: np.ndarray, values: np.ndarray,
                t: int, H: int) -> np.ndarray:
    """x (D,) plus the attention of position ``t``; its keys and values are stored in (G, N, S)."""
    G, _, S = keys.shape
    h = rms_norm_slow(x, a.norm, a.eps[0])
    q = _prepared(times(a.q, h), a.q_bias, a.q_norm, a.eps, H, S)
    k = _prepared(times(a.k, h), a.k_bias, a.k_norm, a.eps, G, S)
    v = _prepared(times(a.v, h), a.v_bias, a.v_bias[:0], a.eps, G, S)
    q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
    for place, new in ((keys, k), (values, v)):
        place[:, t] = round_bf16(new.astype(np.float32)) if place.dtype == np.uint16 else new
    mixed = np.empty((H, S))
    for head in range(H):
        g = head // (H // G)
        scores = wide(keys[g, : t + 1]) @ q[head] / math.sqrt(S)
        shares = np.exp(scores - scores.max())
        mixed[head] = shares / shares.sum() @ wide(values[g, : t + 1])
    return x + times(a.o, mixed.reshape(-1)) + (a.o_bias if a.o_bias.size else 0)


def _prepared(raw: np.ndarray, bias: np.ndarray, norm: np.ndarray, eps: np.ndarray, heads: int, S: int) -> np.ndarray:
    """Bias, norm and clipping of queries, keys or values; (heads, S)."""
    raw = raw + bias if bias.size else raw
    if norm.size == S:
        raw = rms_norm_slow(raw.reshape(heads, S), norm, eps[0])
    elif norm.size:
        raw = rms_norm_slow(raw, norm, eps[0])
    return np.clip(raw, -eps[1], eps[1]).reshape(heads, S)


def _rotated(heads: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary embedding of (heads, S)."""
    half = heads.shape[1] // 2
    turned = np.concatenate([-heads[:, half:], heads[:, :half]], 1)
    return heads * cos + turned * sin


def to_router_slow(x: np.ndarray, norm: np.ndarray, eps: float, router: np.ndarray, softmax: bool, shared: GatedFFN,
                   activation: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """After the attention: the hidden state, shared expert included (D,), what the experts take (D,),
    logits and weights (E,)."""
    h = rms_norm_slow(x, norm, eps)
    logits = wide(router) @ h
    if softmax:
        weights = np.exp(logits - logits.max())
        weights /= weights.sum()
    else:
        weights = 1 / (1 + np.exp(-logits))
    return x + (gated_ffn_slow(h, shared, activation) if shared.gate.shape[0] else 0), h, logits, weights
