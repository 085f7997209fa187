"""Quantised linear layers in a transformers model: attention, shared experts and the head, by the experts' kernels.

Knows which modules are exchanged and how one behaves among torch's. The embedding, norms and routers stay as they
are: they are small, or read by single rows, and routing is what is studied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from moe_lab.kernels.formats.matrix import CODES, Matrix, quantised_matrix, times_rows
from moe_lab.kernels.job import PANEL


class QuantisedLinear(nn.Module):
    """``nn.Linear`` with weights in ``format``; its input is quantised as well, in groups of 32.

    >>> layer = QuantisedLinear(nn.Linear(64, 48), "q8")
    >>> layer(torch.ones(2, 64)).shape
    torch.Size([2, 48])
    """

    def __init__(self, linear: nn.Linear, format: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.format = linear.in_features, linear.out_features, format
        self.matrix: Any = quantised_matrix(bits_of(linear.weight), format)
        self.register_buffer("blocks", torch.from_numpy(self.matrix.blocks), persistent=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., out_features), in the type of ``x``."""
        rows = x.detach().reshape(-1, self.in_features).float().numpy()
        y = torch.from_numpy(times_rows(self.matrix, rows))
        if self.bias is not None:
            y = y + self.bias.float()
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self.format}"


def quantise_dense(hf: Any, format: str) -> None:
    """Exchange every ``nn.Linear`` of ``hf`` for a quantised one. Gates of a few rows stay as they are."""
    assert format in CODES
    found = [(name, module) for name, module in hf.named_modules()
             if type(module) is nn.Linear and module.out_features >= PANEL]
    for name, module in tqdm(found, unit="matrices", desc="quantise", delay=2, leave=False):
        parent, _, attribute = name.rpartition(".")
        setattr(hf.get_submodule(parent), attribute, QuantisedLinear(module, format))


def dense_bytes_touched(hf: Any) -> int:
    """Bytes of the dense weights that one token reads: all, but of the embedding only a row (unless it is the head)."""
    total = sum(p.numel() * p.element_size() for p in hf.parameters())
    total += sum(b.numel() for name, b in hf.named_buffers() if name.endswith(".blocks"))
    embedding, head = hf.get_input_embeddings().weight, hf.get_output_embeddings()
    tied = isinstance(head, nn.Linear) and head.weight.data_ptr() == embedding.data_ptr()
    size = embedding.numel() * embedding.element_size()
    return int(total if tied else total - size + size // embedding.shape[0])


def empty_weights(hf: Any) -> None:
    """Give the memory of all weights back at once, whoever still holds the model."""
    for module in hf.modules():
        if isinstance(module, QuantisedLinear):
            module.matrix = None
    for tensor in (*hf.parameters(), *hf.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype)


def matrix_of(module: nn.Module) -> np.ndarray | Matrix:
    """The weights of a linear layer as kernels take them: a view of the model's own memory, or a quantised matrix."""
    if isinstance(module, QuantisedLinear):
        return module.matrix
    return bits_of(module.weight)  # type: ignore[arg-type]


def bits_of(x: torch.Tensor) -> np.ndarray:
    """A tensor's own memory as kernels take it: bfloat16 as its bits (uint16), other types as they are.

    >>> bits_of(torch.ones(2, dtype=torch.bfloat16))
    array([16256, 16256], dtype=uint16)
    """
    x = x.detach()
    array: np.ndarray = (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
    return array
