"""Many tokens through the experts of one layer: grouped by expert, so that each is loaded and read once a chunk.

Knows rows and how they are put together again; where an expert's bytes come from is the cache's business. A long
prompt is cut into chunks, so that memory stays bounded; nothing that is computed depends on the cut.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn.functional import gelu, linear, relu, silu

from moe_lab.kernels.formats import Format

CHUNK_BYTES = 128 << 20
"""What the outputs of a chunk may take: K rows for each token."""

Visit = Callable[[np.ndarray], Iterator[tuple[int, np.ndarray]]]
"""Yields (expert, slot bytes) once for each expert asked for, in any order."""


def chunk_tokens(K: int, D: int) -> int:
    """Tokens of a chunk."""
    return max(64, CHUNK_BYTES // (4 * K * D))


def sum_of_experts(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, visit: Visit, format: Format,
                   width: int, activation: str) -> tuple[torch.Tensor, int]:
    """The weighted sum of experts ``ids`` (T, K) int64, -1 for none, of ``x`` (T, D), in the order of the ids; and how
    many experts were read. The sum is in the type of ``x``; ``width`` is the experts' hidden one."""
    size = chunk_tokens(ids.shape[1], x.shape[1])
    out, touched = torch.empty_like(x), 0
    for start in range(0, x.shape[0], size):
        part = slice(start, start + size)
        out[part], used = _chunk(x[part], ids[part], weights[part], visit, format, width, activation)
        touched += used
    return out, touched


def _chunk(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, visit: Visit, format: Format, width: int,
           activation: str) -> tuple[torch.Tensor, int]:
    (T, K), D = ids.shape, x.shape[1]
    flat = ids.reshape(-1).numpy()
    order = np.argsort(flat, kind="stable")
    experts, counts = np.unique(flat, return_counts=True)
    places = dict(zip(experts.tolist(), np.split(order, counts.cumsum()[:-1]), strict=True))
    rows, gates = x.float().contiguous().numpy(), weights.float().reshape(-1).numpy()
    parts = np.empty((T * K, D), np.float32)
    parts[places.get(-1, [])] = 0
    used = experts[experts >= 0]
    run = format.ffn_rows if format.grouped else functools.partial(_by_torch, format)
    for expert, slot in visit(used):
        run(rows, slot, places[expert], gates, parts, width, activation)
    return torch.from_numpy(parts).view(T, K, D).sum(1).to(x.dtype), int(used.size)


def _by_torch(format: Format, x: np.ndarray, slot: np.ndarray, places: np.ndarray, gates: np.ndarray, out: np.ndarray,
              F: int, activation: str) -> None:
    """``Format.ffn_rows`` by torch's matrix products over the decoded weights."""
    gate, up, down = (torch.from_numpy(w) for w in format.decode(slot, x.shape[1], F))
    rows = torch.from_numpy(x[places // (len(out) // len(x))])
    hidden = ACTIVATIONS[activation](linear(rows, gate)) * linear(rows, up)
    out[places] = linear(hidden, down).float().numpy() * gates[places, None]


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
    "relu": relu,
}
"""Activations by the names that the kernels use."""
