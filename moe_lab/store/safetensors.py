"""Headers of safetensors files: which tensor lies where.

Knows the format's header and nothing of models; reads no tensor. A header comes from a stranger: its
length, its JSON, every name, type, shape and offset is checked against the file before anything is
believed, so that a truncated or damaged file is refused at once and by name.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_lab.errors import CheckpointError
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


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file, by name.

    Raises ``CheckpointError`` where the file is missing, truncated, longer than its header says, or where
    the header is not one.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise CheckpointError(
                    f"{path} is not a safetensors file, or is truncated: its header should be {length:,} bytes long, "
                    f"the file has {size:,}; fetch it again"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError("it is not a table of tensors")
        raw.pop("__metadata__", None)
        return _checked(path, raw, size, 8 + length)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header of {path} is damaged: {error}; fetch the file again") from error


def entry(path: Path, name: str, raw: Any, start: int) -> TensorEntry:
    """One row of a header as a ``TensorEntry``; ``start`` is where the data begin. ``ValueError`` if it is none."""
    try:
        dtype, shape, (begin, end) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
        numbers = (*shape, begin, end)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"tensor {name!r} has no type, shape and offsets") from error
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"tensor {name!r} has the unknown type {dtype!r}")
    if not all(type(n) is int and n >= 0 for n in numbers) or end < begin:
        raise ValueError(f"tensor {name!r} has a shape or offsets that are no sizes")
    if math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
        raise ValueError(f"tensor {name!r} of shape {list(shape)} and type {dtype} does not fill {end - begin:,} bytes")
    return TensorEntry(path, name, dtype, shape, start + begin, end - begin)


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


def read_checkpoint(folder: Path) -> dict[str, TensorEntry]:
    """All tensors of a checkpoint folder, from one file or from all shards of its index.

    Every shard is checked here, before anything long is done. Raises ``CheckpointError`` naming what is
    missing and, for a folder of pickled weights, why it is refused.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.exists() and not index.exists():
        return read_header(single)
    if not index.exists():
        raise CheckpointError(_no_weights(folder))
    places = _weight_map(index)
    shards = sorted(set(places.values()))
    missing = [shard for shard in shards if not (folder / shard).exists()]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:5])}"
                              f"{' ...' if len(missing) > 5 else ''}; fetch the checkpoint again")
    headers = {shard: read_header(folder / shard) for shard in shards}
    absent = [name for name, shard in places.items() if name not in headers[shard]]
    if absent:
        raise CheckpointError(f"{folder / places[absent[0]]} lacks the tensor {absent[0]!r} that {index.name} promises "
                              f"({len(absent)} such tensors); the shards are not of one checkpoint")
    return {name: headers[shard][name] for name, shard in places.items()}


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name to shard name; a shard must be a plain file name beside the index."""
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        names = {str(shard) for shard in places.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no index of safetensors files ({type(error).__name__}: {error})") from error
    for shard in names:
        if shard != os.path.basename(shard) or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {shard!r}, which is no safetensors file beside it; it is refused")
    if not places:
        raise CheckpointError(f"{index} lists no tensors")
    return places


def _no_weights(folder: Path) -> str:
    """Why a folder without model.safetensors cannot be opened."""
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        return (f"{folder} has only pickled weights ({pickled[0]}), which can run code when they are opened and are "
                f"refused; convert them: transformers' model.save_pretrained(folder) writes safetensors")
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    found = f"; {others[0]} is there, but neither" if others else ", neither"
    return f"{folder} holds no weights{found} model.safetensors nor model.safetensors.index.json"
