"""How the learned eviction policy is trained: samples from a trace, and a small network fitted by gradient descent.

Knows traces, the replay of one layer and plain NumPy. The inputs are those of ``moe_lab.eviction.learned``, computed
for all experts of all layers at once; a test holds the two to each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from moe_lab.errors import TraceError
from moe_lab.eviction.learned import FAINT, GAP, HALF_LIVES, HIDDEN, INPUTS, OLD, UNTRAINED, LearnedEviction
from moe_lab.kernels.jit import copied
from moe_lab.kernels.replay import replay_layer
from moe_lab.kernels.residency import LayerState
from moe_lab.policy import Policy

if TYPE_CHECKING:
    from moe_lab.routing import RoutingPolicy
    from moe_lab.trace import Trace

BATCH = 1024
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the trained network in the mixtures that are tried."""


class _AsRecorded(Policy):
    """Stands where a layer wants a routing policy: a replay routes nothing, and eviction knows no routing."""

    kind = "routing"

    @staticmethod
    def rank(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
        """Score = logit."""
        copied(logits, scores)


def train(trace: Trace, horizon: int, epochs: int, seed: int) -> np.ndarray:
    """The network's numbers (SIZE,) float64; see ``LearnedEviction.fit``."""
    cut = max(1, 2 * len(trace) // 3)
    inputs, far = samples(trace.ids[:cut], trace.experts, min(horizon, max(1, cut // 3)))
    if len(far) < 10 * INPUTS:
        raise TraceError(f"{trace!r} is too short to learn from: {len(far)} samples of an expert that waits for its "
                         "next use; give a trace of some hundred tokens")
    trained = fit(inputs, far, epochs, np.random.default_rng(seed))
    slope = np.polyfit(inputs[:, 2], far, 1)[0]         # the untrained network on the scale of the trained one
    untrained = np.array(UNTRAINED) * -min(slope, -1e-3)
    mixed = [np.concatenate([(1 - share) * untrained[:INPUTS] + share * trained[:INPUTS], trained[INPUTS:]])
             for share in SHARES]
    for share, network in zip(SHARES, mixed, strict=True):
        network[INPUTS:].reshape(HIDDEN, INPUTS + 2)[:, -1] *= share
    return max(mixed, key=lambda network: _hits(trace, cut, network))


def _hits(trace: Trace, cut: int, network: np.ndarray) -> int:
    """Hits of a network on the tokens from ``cut`` on, after the others, at a quarter and half of the experts."""
    found, policy = 0, LearnedEviction(weights=network)
    for layer in range(trace.L):
        ids = np.ascontiguousarray(trace.ids[:, layer])
        for C in {max(trace.K, trace.experts // 4), max(trace.K, trace.experts // 2)}:
            state = LayerState.new(trace.experts, trace.K, C, cast("RoutingPolicy", _AsRecorded()), policy, layer)
            found += int(replay_layer(ids, None, state)[cut:].sum())
    return found


def samples(ids: np.ndarray, E: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (N, INPUTS) and log2 of the tokens to the next use, at most ``horizon``, (N,), from ``ids`` (T, L, K).

    Of every expert that was used before and is not now, at every token early enough to know its next use or that it
    is far.
    """
    T, L, _ = ids.shape
    used = np.zeros((T, L, E), bool)
    at, layer, k = np.nonzero(ids >= 0)
    used[at, layer, ids[at, layer, k]] = True
    ahead = np.full((L, E), horizon, np.int64)
    far = np.empty((T, L, E), np.int64)
    for t in range(T - 1, -1, -1):                      # tokens from t to the next use after it
        far[t] = ahead
        ahead = np.where(used[t], 1, np.minimum(ahead + 1, horizon))
    counts, gap = np.zeros((GAP, L, E)), np.zeros((L, E))
    last = np.full((L, E), -1.0)
    found, targets = [], []
    for t in range(T - horizon):
        age = t - last
        seen = last >= 0
        wanted = seen & ~used[t]
        found.append(_inputs(counts, gap, age)[wanted])
        targets.append(np.log2(far[t][wanted]))
        fresh = used[t] & ~seen
        for i, half_life in enumerate(HALF_LIVES):
            grown = np.logaddexp2(counts[i] - np.minimum(age, OLD) / half_life, 0.0)
            counts[i] = np.where(used[t], np.where(fresh, 0.0, grown), counts[i])
        gap = np.where(used[t], np.where(fresh, 0.0, np.log2(1.0 + np.minimum(age, OLD))), gap)
        last = np.where(used[t], float(t), last)
    return (np.concatenate(found), np.concatenate(targets)) if found else (np.empty((0, INPUTS)), np.empty(0))


def _inputs(counts: np.ndarray, gap: np.ndarray, age: np.ndarray) -> np.ndarray:
    faded = [np.maximum(counts[i] - age / half_life, FAINT) for i, half_life in enumerate(HALF_LIVES)]
    return np.stack([np.log2(1.0 + np.minimum(age, OLD)), *faded, gap], axis=-1)


@np.errstate(under="ignore")        # the moments of a unit that is off fade to nothing
def fit(inputs: np.ndarray, far: np.ndarray, epochs: int, rng: np.random.Generator) -> np.ndarray:
    """Least squares for the straight part, then Adam for all of it; the numbers in the order of the policy's table."""
    centre, spread = inputs.mean(0), inputs.std(0) + 1e-6
    x, y = (inputs - centre) / spread, far - far.mean()
    straight = np.linalg.lstsq(x, y, rcond=None)[0]
    weights = [straight, rng.standard_normal((INPUTS, HIDDEN)) / np.sqrt(INPUTS), np.zeros(HIDDEN),
               rng.standard_normal(HIDDEN) * 0.1]
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    steps, step = epochs * (len(y) // BATCH + 1), 0
    for _ in range(epochs):
        order = rng.permutation(len(y))
        for at in range(0, len(y), BATCH):
            step += 1
            pick = order[at : at + BATCH]
            rate = 0.01 * 0.5 * (1 + np.cos(np.pi * step / steps))
            for w, m, v, g in zip(weights, first, second, _gradients(weights, x[pick], y[pick]), strict=True):
                m += 0.1 * (g - m)
                v += 0.01 * (g * g - v)
                w -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
    a, w, b, c = weights
    w = w / spread[:, None]                             # the policy sees inputs as they are
    b = b - centre @ w
    return np.concatenate([a / spread, np.concatenate([w, b[None], c[None]]).T.ravel()])


def _gradients(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Of half the mean squared error."""
    a, w, b, c = weights
    unit = x @ w + b
    hidden = np.maximum(unit, 0.0)
    error = (x @ a + hidden @ c - y) / len(y)
    back = np.where(unit > 0, error[:, None] * c, 0.0)
    return [x.T @ error, x.T @ back, back.sum(0), hidden.T @ error]
