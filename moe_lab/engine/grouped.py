"""Many tokens through the experts of one layer: grouped by expert, so that each is loaded and read once a chunk.

Knows rows and how they are put together again; where an expert's bytes come from is the cache's business. A long
prompt is cut into chunks, so that memory stays bounded; nothing that is computed depends on the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn import functional as F

from moe_lab.kernels.formats import Format

CHUNK_BYTES = 256 << 20
"""What the rows of a chunk may take: K rows in and K rows out for each token."""

Visit = Callable[[np.ndarray], Iterator[tuple[int, np.ndarray]]]
"""Yields (expert, slot bytes) once for each expert asked for, in any order."""


def chunk_tokens(K: int, D: int) -> int:
    """Tokens of a chunk."""
    return max(64, CHUNK_BYTES // (2 * 4 * K * D))


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
    order = torch.argsort(ids.reshape(-1), stable=True)
    experts, counts = np.unique(ids.numpy(), return_counts=True)
    ends = zip(experts.tolist(), counts.tolist(), counts.cumsum().tolist(), strict=True)
    span = {expert: slice(end - n, end) for expert, n, end in ends}
    rows, out = x.float()[order // K], torch.zeros(T * K, D)
    used = experts[experts >= 0]
    run = _by_kernel if format.grouped else _by_torch
    for expert, slot in visit(used):
        run(rows[span[expert]], slot, out[span[expert]], format, width, activation)
    out *= weights.float().reshape(-1)[order, None]
    parts = torch.empty_like(out).index_copy_(0, order, out).view(T, K, D)
    return parts.sum(1).to(x.dtype), int(used.size)


def _by_kernel(rows: torch.Tensor, slot: np.ndarray, out: torch.Tensor, format: Format, width: int,
               activation: str) -> None:
    format.ffn_rows(rows.numpy(), slot, out.numpy(), width, activation)


def _by_torch(rows: torch.Tensor, slot: np.ndarray, out: torch.Tensor, format: Format, width: int,
              activation: str) -> None:
    gate, up, down = (torch.from_numpy(w) for w in format.decode(slot, rows.shape[1], width))
    hidden = ACTIVATIONS[activation](F.linear(rows, gate)) * F.linear(rows, up)
    torch.matmul(hidden, down.T, out=out)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
"""Activations by the names that the kernels use."""
