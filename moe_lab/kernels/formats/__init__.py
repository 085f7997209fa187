"""Weight formats: one a file, and the table."""

from moe_lab.kernels.formats import q4, q8
from moe_lab.kernels.formats.bf16 import BF16
from moe_lab.kernels.formats.f32 import F32
from moe_lab.kernels.formats.format import Format
from moe_lab.kernels.formats.quantised import Quantised

FORMATS: dict[str, Format] = {"f32": F32(), "bf16": BF16(), "q8": Quantised(q8.CODE), "q4": Quantised(q4.CODE)}
"""Formats by the name that is typed: ``weights="bf16"``."""

__all__ = ["BF16", "F32", "FORMATS", "Format", "Quantised"]
