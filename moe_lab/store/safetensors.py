"""Headers of safetensors files: which tensor lies where.

Knows the format's header and nothing of models or folders; reads no tensor. A header comes from a stranger: its
length, its JSON, every name, type, shape and offset is checked against the file before anything is
believed, so that a truncated or damaged file is refused at once and by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.errors import CheckpointError, foreign
from moe_lab.store.files import WeightFiles
from moe_lab.store.strict_json import Repeated, once, parse
from moe_lab.units import format_bytes

HEADER_LIMIT = 100_000_000
"""Longest header in bytes that the format's own library accepts."""

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "I8": 1, "U8": 1, "BOOL": 1,
}
"""Bytes of one number by its type in the header."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: ``offset`` and ``nbytes`` in bytes from the start of ``file``."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(files: WeightFiles, number: int = 0) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file of ``files``, by name.

    Raises ``CheckpointError`` where the file is truncated, longer than its header says, or where the header is not
    one. What stands under ``__metadata__`` is nobody's business and may be anything.
    """
    path, size = files[number], files.size(number)
    length = int(_bytes(files, number, 0, 8).view("<u8")[0]) if size >= 8 else 0
    if not 2 <= length <= min(HEADER_LIMIT, size - 8):
        raise CheckpointError(
            f"{path} is not a safetensors file, or is truncated: its header should be {length:,} bytes long, "
            f"the file has {size:,}; fetch it again"
        )
    text = _bytes(files, number, 8, length).tobytes()
    with foreign(f"the header of {path} is damaged (fetch the file again)"):
        raw = once(parse(text))
        raw.pop("__metadata__", None)
        return _checked(path, raw, size, 8 + length)


def _bytes(files: WeightFiles, number: int, offset: int, count: int) -> np.ndarray:
    """(count,) uint8 of a file."""
    found = np.empty(count, np.uint8)
    with foreign(f"{files[number]} cannot be read"):
        files.fill(number, [found], offset)
    return found


def entry(path: Path, name: str, raw: Any, start: int) -> TensorEntry:
    """One row of a header as a ``TensorEntry``; ``start`` is where the data begin. ``ValueError`` if it is none."""
    if isinstance(raw, Repeated):
        raise ValueError(f"tensor {name!r} names {raw.name!r} twice")
    try:
        dtype, shape, (begin, end) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
        numbers = (*shape, begin, end)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"tensor {name!r} has no type, shape and offsets") from error
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"tensor {name!r} has the unknown type {dtype!r}")
    if not all(type(n) is int and n >= 0 for n in numbers) or end < begin:
        raise ValueError(f"tensor {name!r} has a shape or offsets that are no sizes")
    if _product(shape, end - begin) * ITEM_BYTES[dtype] != end - begin:
        raise ValueError(f"tensor {name!r} of shape {list(shape)} and type {dtype} does not fill {end - begin:,} bytes")
    return TensorEntry(path, name, dtype, shape, start + begin, end - begin)


def _product(shape: tuple[int, ...], limit: int) -> int:
    """The product of ``shape``, or some number above ``limit``: a stranger's shape may be endless."""
    if 0 in shape:
        return 0
    product = 1
    for n in shape:
        product *= n
        if product > limit:
            break
    return product


def _checked(path: Path, raw: dict[str, Any], size: int, start: int) -> dict[str, TensorEntry]:
    """All rows, lying one after the other and together as long as the file."""
    entries = {name: entry(path, name, row, start) for name, row in raw.items()}
    at = start
    for tensor in sorted(entries.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != at:
            what = "overlaps another" if tensor.offset < at else "leaves a gap before it"
            raise ValueError(f"tensor {tensor.name!r} {what}")
        at += tensor.nbytes
    if at != size:
        what = "truncated" if size < at else "longer than its header says"
        raise CheckpointError(f"{path} is {what}: {at:,} bytes expected, {size:,} there "
                              f"({format_bytes(abs(at - size))} {'missing' if size < at else 'too many'}); "
                              f"fetch it again")
    return entries
