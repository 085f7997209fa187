"""torch's ways to multiply on a CPU: float32, bfloat16, and its weight-only products of 8 and 4 bits.

Knows how torch wants weights packed; measures nothing. int8 has a scale a row, int4 a scale and a minimum for each
group of 32 columns; both take bfloat16 activations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

Weights = tuple[torch.Tensor, ...]
Product = Callable[[torch.Tensor, Weights], torch.Tensor]


def plain(kind: torch.dtype) -> Callable[[torch.Tensor], Weights]:
    """Weights in a type that torch multiplies as it is."""
    return lambda w: (w.to(kind),)


def int8(w: torch.Tensor) -> Weights:
    """(R, C) float32 to int8 and a scale a row."""
    scale = w.abs().amax(1) / 127
    return (w / scale[:, None]).round().to(torch.int8), scale.bfloat16()


def int4(w: torch.Tensor) -> Weights:
    """(R, C) float32 to 4 bits, with scales and minima of groups of 32."""
    rows, columns = w.shape
    groups = w.view(rows, columns // 32, 32)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = (high - low) / 15
    numbers = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32).view(rows, columns)
    packed = torch._convert_weight_to_int4pack_for_cpu(numbers, 1)
    return packed, torch.stack([scale.t(), (low + 8 * scale).t()], -1).bfloat16().contiguous()


WAYS: dict[str, tuple[str, torch.dtype, Callable[[torch.Tensor], Weights], Product]] = {
    "f32": ("torch f32", torch.float32, plain(torch.float32), lambda x, w: F.linear(x, w[0])),
    "bf16": ("torch bf16", torch.bfloat16, plain(torch.bfloat16), lambda x, w: F.linear(x, w[0])),
    "q8": ("torch int8", torch.bfloat16, int8, lambda x, w: torch._weight_int8pack_mm(x, *w)),
    "q4": ("torch int4", torch.bfloat16, int4, lambda x, w: torch._weight_int4pack_mm_for_cpu(x, w[0], 32, w[1])),
}
"""By our format of as many bits: name, type of activations, packing, product."""


def clones(made: Weights, count: int) -> list[Weights]:
    """As many copies, each in memory of its own."""
    return [tuple(part.clone() for part in made) for _ in range(count)]


def nbytes(made: Weights) -> int:
    """Bytes of weights, scales included."""
    return sum(part.nbytes for part in made)
