"""The dense part: everything but the experts, read by offset and put into the model by transformers' own loader.

Knows which tensors that loader wants, and gives it readers in their place. So renaming, conversion, types and tying
are transformers', only what belongs to the model is read, and no file is mapped: a mapping of a whole file counts
against memory, and files may be larger than that.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from moe_lab.errors import BudgetError, CheckpointError, first_line, foreign
from moe_lab.models.find import Block, loading
from moe_lab.models.plan import Naming
from moe_lab.store import Checkpoint, TensorEntry, WeightFiles
from moe_lab.store.look import require

TYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu,
}
"""torch's types by their names in a header; complex numbers have no place in a model."""

_ALIGNED = 64
"""Bytes: a line of the processor's cache."""


class FileTensor:
    """A tensor in a file, read when it is asked for: ``tensor[...]``, which is all that transformers' loader does."""

    def __init__(self, files: WeightFiles, number: int, entry: TensorEntry) -> None:
        self._files, self._number, self._entry = files, number, entry

    def __getitem__(self, place: object) -> torch.Tensor:
        """The whole tensor, in memory of its own, whatever ``place``. Raises ``CheckpointError``."""
        entry = self._entry
        room = np.empty(entry.nbytes + _ALIGNED, np.uint8)      # NumPy asks for huge pages where it is large
        raw = room[-room.ctypes.data % _ALIGNED :][: entry.nbytes]
        try:
            self._files.fill(self._number, [raw], entry.offset)
        except (OSError, EOFError) as error:
            raise CheckpointError(f"tensor {entry.name!r} in {entry.file} cannot be read: {error}") from error
        return torch.from_numpy(raw).view(TYPES[entry.dtype]).reshape(entry.shape)


def check_dense(model: Any, blocks: list[Block], naming: Naming, tensors: dict[str, TensorEntry], name: str) -> int:
    """The bytes in the files that are the dense part of ``model`` (a skeleton).

    Raises ``CheckpointError`` where a tensor is missing, or of another shape than the configuration says, before
    transformers would fill its place with random numbers.
    """
    experts = tuple(f"{block.experts}." for block in blocks)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items() if not key.startswith(experts)}
    if absent := sorted(_absent(model, wanted.keys() - naming.sources.keys())):
        raise CheckpointError(f"{name!r} lacks {len(absent)} tensors of its dense part: {', '.join(absent[:3])}"
                              f"{' ...' if len(absent) > 3 else ''}; the checkpoint is incomplete")
    total = 0
    for key in wanted:
        for pattern, sources in naming.sources.get(key, {}).items():
            for tensor in (tensors[source] for source in sources):
                total += tensor.nbytes
                _check(tensor, wanted[key] if pattern is None else tensor.shape, name)
    return total


def load_dense(streamed: type[Any], config: Any, checkpoint: Checkpoint, experts: set[str], dtype: torch.dtype,
               folder: Path, name: str) -> Any:
    """The model of class ``streamed``, its dense part read; ``experts`` names the tensors that are left alone.

    Raises ``CheckpointError``, and ``BudgetError`` where it does not fit into memory.
    """
    number = {path: n for n, path in enumerate(checkpoint.files)}
    offered = {key: FileTensor(checkpoint.files, number[tensor.file], tensor)
               for key, tensor in checkpoint.tensors.items() if key not in experts}
    settings = generation_config(folder)
    with foreign(f"{name!r} cannot be loaded"), _room(name), loading():
        model, report = streamed.from_pretrained(None, config=config, dtype=dtype, state_dict=offered,
                                                 ignore_mismatched_sizes=True, output_loading_info=True)
    odd = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if odd:                                             # what no look at names and shapes can tell: conversions
        raise CheckpointError(f"{name!r} does not give its model {', '.join(odd[:3])}{' ...' if len(odd) > 3 else ''} "
                              f"in the shape that config.json says; they do not belong together")
    model.config.name_or_path = model.name_or_path = str(folder)
    model.generation_config = settings
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _room(name: str) -> Iterator[None]:
    """``BudgetError`` where the machine has no memory left for what is done inside."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):     # torch's word for it
            raise
        raise BudgetError(f"the dense part of {name!r} does not fit into memory: {first_line(error)}") from error


def generation_config(folder: Path) -> GenerationConfig:
    """How the checkpoint wants to generate: of generation_config.json, else, as transformers does, of config.json."""
    path, options = folder / "generation_config.json", dict[str, Any]()
    if os.path.lexists(path):
        require(path)
    else:
        path, options = folder / "config.json", {"config_file_name": "config.json", "_from_model_config": True}
    with foreign(f"the settings for generation in {path} cannot be read"), loading():
        settings = GenerationConfig.from_pretrained(folder, local_files_only=True, **options)
    ends = settings.eos_token_id
    if ends is not None and not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends])):
        raise CheckpointError(f"{path} says eos_token_id = {ends!r}; it must be a token id, or a list of them")
    return settings


def _absent(model: Any, keys: set[str]) -> set[str]:
    """Those of the missing ``keys`` that transformers would miss: not tied to one that is there, not let go."""
    pairs = model.all_tied_weights_keys.items()
    held = {source for target, source in pairs if not {target, source} <= keys}
    keys = keys - {key for pair in pairs if pair[1] in held for key in pair}
    let_go = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    return {key for key in keys if not any(pattern.search(key) for pattern in let_go)}


def _check(tensor: TensorEntry, shape: tuple[int, ...], name: str) -> None:
    if tensor.shape != shape:
        raise CheckpointError(
            f"{name!r}: tensor {tensor.name!r} in {tensor.file} has the shape {list(tensor.shape)}, and the "
            f"configuration says {list(shape)}; config.json and weights do not belong together"
        )
    if tensor.dtype not in TYPES:
        raise CheckpointError(f"{name!r}: tensor {tensor.name!r} in {tensor.file} is of type {tensor.dtype}; a model "
                              f"holds one of {', '.join(TYPES)}")
