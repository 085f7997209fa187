"""What a model is, in numbers: layers, experts, widths, bytes. Knows no weights and no library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moe_lab.units import format_bytes

WeightFormat = Literal["f32", "bf16", "q8", "q4"]

MOST_EXPERTS = 2**15 - 1
"""Experts that a layer can have: their ranks are kept in 16 bits."""


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a mixture-of-experts checkpoint.

    ``L`` counts MoE layers only; ``layers`` are their places among all layers. Sizes are bytes.
    """

    name: str
    """What was asked for: a hub id, a folder, or ``pocket``."""
    family: str
    """transformers' model type, such as ``olmoe``."""
    layers: tuple[int, ...]
    experts: int
    top_k: int
    hidden: int
    """Model width D."""
    expert_hidden: int
    """Expert width F."""
    expert_bytes: dict[str, int]
    """Bytes of one expert by weight format."""
    dense_bytes: int
    """Bytes of everything but the routed experts, in the checkpoint's precision."""
    dtype: WeightFormat
    """The checkpoint's own precision."""
    context: int
    """Longest sequence, in tokens."""
    routing: str
    """The router's rule in words, or why routing policies are off."""
    past_bytes: int = 0
    """Bytes of the keys and values of one token, all layers, in the checkpoint's precision; 0 where not known."""

    @property
    def L(self) -> int:
        """Number of MoE layers."""
        return len(self.layers)

    def floor_bytes(self, format: str) -> int:
        """The least cache that works: the K experts that one token needs at once, in every layer."""
        return self.L * self.top_k * self.expert_bytes[format]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.expert_bytes.items())
        floors = ", ".join(f"{name} {format_bytes(self.floor_bytes(name))}" for name in self.expert_bytes)
        return (
            f"{self.name}: {self.family}, {self.L} MoE layers x {self.experts} experts, top-{self.top_k}\n"
            f"  widths       model {self.hidden}, expert {self.expert_hidden}; context {self.context:,} tokens\n"
            f"  one expert   {sizes}\n"
            f"  all experts  {format_bytes(self.L * self.experts * self.expert_bytes[self.dtype])} ({self.dtype}); "
            f"everything else {format_bytes(self.dense_bytes)}\n"
            f"  floor        {floors}: {self.top_k} experts x {self.L} layers\n"
            f"  routing      {self.routing}"
        )
