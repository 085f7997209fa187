"""The plan: where the three matrices of every expert lie in the files.

Knows places and shapes; knows neither formats, slots nor how a family names its tensors
(``models.plan`` finds that out and fills this in).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_lab.store.files import WeightFiles

PARTS = ("gate", "up", "down")
"""The matrices of an expert, in the order of a slot: gate (F, D), up (F, D), down (D, F)."""


@dataclass(frozen=True)
class ExpertPlan:
    """Places of L layers x E experts x 3 parts; every part is whole rows, row-major and contiguous.

    ``file`` (L, E, 3) int32 is an index into the open ``files``, ``offset`` (L, E, 3) int64 bytes from its start;
    ``tensors[layer][expert]`` names the three tensors for messages. ``dtype`` is the safetensors type of all.
    """

    files: WeightFiles
    file: np.ndarray
    offset: np.ndarray
    tensors: tuple[tuple[tuple[str, str, str], ...], ...]
    dtype: str
    item_bytes: int
    D: int
    F: int

    @property
    def L(self) -> int:
        """Number of MoE layers."""
        return int(self.file.shape[0])

    @property
    def E(self) -> int:
        """Experts of a layer."""
        return int(self.file.shape[1])

    @property
    def part_bytes(self) -> int:
        """Bytes of one matrix in the file; the three are equally large."""
        return self.D * self.F * self.item_bytes

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert in the file."""
        return 3 * self.part_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of all experts in the files."""
        return self.L * self.E * self.expert_bytes
