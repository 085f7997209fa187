"""Where each expert's matrices lie: transformers' own conversion table, applied to the names in a checkpoint.

Knows the operations by which transformers builds its fused expert tensors, and undoes them in thought:
an expert is a place in a file, not a tensor. Knows no family; a list of operations it has not met is
refused by its names rather than guessed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from moe_lab.errors import CheckpointError, UnsupportedModelError
from moe_lab.models.find import Block
from moe_lab.store.checkpoint import Checkpoint
from moe_lab.store.plan import ExpertPlan
from moe_lab.store.safetensors import ITEM_BYTES, TensorEntry

READABLE = ("F32", "BF16", "F16")
"""Types of expert tensors that a store can read."""
_PLAIN = {*READABLE, "F64"}
"""Types that transformers turns into one another without a loss that would surprise."""

Place = tuple[TensorEntry, int]
"""A matrix: the tensor that holds it, and the bytes before it in there."""
Sources = dict[str | None, list[str]]
"""Checkpoint names behind one fused tensor, by the pattern that matched; in the order of the experts."""


@dataclass(frozen=True)
class Naming:
    """For each name in the model, the checkpoint names that make it; and the converter behind each pattern."""

    sources: dict[str, Sources]
    converters: dict[str, WeightConverter]


def find_names(model: Any, tensors: dict[str, TensorEntry]) -> Naming:
    """What transformers would make of each tensor, by its own conversion table for ``model`` (a skeleton)."""
    mapping = get_model_conversion_mapping(model)
    renamings = [t for t in mapping if isinstance(t, WeightRenaming)]
    converters = [t for t in mapping if isinstance(t, WeightConverter)]
    known = model.state_dict()
    sources: dict[str, Sources] = defaultdict(lambda: defaultdict(list))
    for key in sorted(tensors, key=dot_natural_key):
        target, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
        if target not in known and key in known:
            target, pattern = key, None
        sources[target][pattern].append(key)
    return Naming(sources, {pattern: c for c in converters for pattern in c.source_patterns})


def expert_plan(blocks: list[Block], naming: Naming, checkpoint: Checkpoint, name: str) -> ExpertPlan:
    """The plan of all experts of the ``blocks``.

    Raises ``CheckpointError`` for tensors that are missing or of the wrong shape, ``UnsupportedModelError``
    for a conversion or a type that is not understood.
    """
    number = {path: i for i, path in enumerate(checkpoint.files)}
    rows = []
    for block in blocks:
        gate_up = _parts(block, "gate_up_proj", naming, checkpoint.tensors, name)
        down = _parts(block, "down_proj", naming, checkpoint.tensors, name)
        rows.append([(*gate_up[e], *down[e]) for e in range(block.E)])
    dtype = _one_dtype([{part[0].dtype for expert in layer for part in expert} for layer in rows], blocks, name)
    first = blocks[0]
    return ExpertPlan(
        files=checkpoint.files,
        file=np.array([[[number[t.file] for t, _ in expert] for expert in layer] for layer in rows], np.int32),
        offset=np.array([[[t.offset + skip for t, skip in expert] for expert in layer] for layer in rows], np.int64),
        tensors=tuple(tuple((g[0].name, u[0].name, d[0].name) for g, u, d in layer) for layer in rows),
        dtype=dtype, item_bytes=ITEM_BYTES[dtype], D=first.D, F=first.F,
    )


def _parts(block: Block, leaf: str, naming: Naming, tensors: dict[str, TensorEntry],
           name: str) -> list[tuple[Place, ...]]:
    """For each expert the places of the matrices in ``leaf``: two for gate_up_proj, one for down_proj."""
    count = 2 if leaf == "gate_up_proj" else 1
    shape = (block.F, block.D) if count == 2 else (block.D, block.F)
    found = naming.sources.get(f"{block.experts}.{leaf}")
    if not found:
        raise CheckpointError(f"{name!r} lacks the experts of layer {block.layer}: nothing in its files becomes "
                              f"{block.experts}.{leaf}; the checkpoint is incomplete")
    if len(found) > (1 if None in found else count):
        each = ", ".join(repr(keys[0]) for keys in found.values())
        raise CheckpointError(f"{name!r} holds the experts of layer {block.layer} more than once, in tensors like "
                              f"{each}; take those away that do not belong to it")
    if None in found:
        return _fused(tensors[found[None][0]], block.E, count, shape, name)
    converter = naming.converters[next(iter(found))]  # type: ignore[index]
    _check_operations(converter, count, block, name)
    columns = [found.get(pattern, []) for pattern in converter.source_patterns]
    for pattern, keys in zip(converter.source_patterns, columns, strict=True):
        if len(keys) != block.E:
            wrong = "the checkpoint is incomplete" if len(keys) < block.E else "they do not belong together"
            raise CheckpointError(f"{name!r} has {len(keys)} tensors like {pattern!r} in layer {block.layer}, and its "
                                  f"configuration says {block.E} experts; {wrong}")
    for key in (key for keys in columns for key in keys):
        _check_shape(tensors[key], shape, name)
    return [tuple((tensors[keys[e]], 0) for keys in columns) for e in range(block.E)]


def _fused(tensor: TensorEntry, E: int, count: int, shape: tuple[int, int], name: str) -> list[tuple[Place, ...]]:
    """Experts that lie one after the other in one tensor (E, count * rows, columns)."""
    _check_shape(tensor, (E, count * shape[0], shape[1]), name)
    size = shape[0] * shape[1] * ITEM_BYTES[tensor.dtype]
    return [tuple((tensor, (e * count + part) * size) for part in range(count)) for e in range(E)]


def _check_operations(converter: WeightConverter, count: int, block: Block, name: str) -> None:
    """Only stacking experts, and putting gate before up, is understood."""
    done = [(type(op).__name__, getattr(op, "dim", None)) for op in converter.operations]
    wanted = [("MergeModulelist", 0), ("Concatenate", 1)][:count]
    if done != wanted or len(converter.source_patterns) != count:
        words = ", ".join(repr(op) for op in converter.operations)
        raise UnsupportedModelError(f"{name!r} stores its experts in a way that MoE Lab does not know: {block.experts} "
                                    f"is made from {list(converter.source_patterns)} by [{words}]")


def _check_shape(tensor: TensorEntry, shape: tuple[int, ...], name: str) -> None:
    if tensor.shape != shape:
        raise CheckpointError(
            f"{name!r}: tensor {tensor.name!r} in {tensor.file} has the shape {list(tensor.shape)}, and the "
            f"configuration says {list(shape)}; config.json and weights do not belong together"
        )


def _one_dtype(dtypes: list[set[str]], blocks: list[Block], name: str) -> str:
    """The type of all experts, from the types in each of the ``blocks``."""
    found = sorted(set().union(*dtypes))
    if len(found) == 1 and found[0] in READABLE:
        return found[0]
    if not set(found) <= _PLAIN:
        raise UnsupportedModelError(f"{name!r} has experts of type {', '.join(found)}; MoE Lab reads one of "
                                    f"{', '.join(READABLE)}: take the unquantised checkpoint")
    places = {dtype: [b.layer for b, types in zip(blocks, dtypes, strict=True) if dtype in types] for dtype in found}
    where = "; ".join(f"{dtype} in layer{'s'[: len(at) - 1]} {_ranges(at)}" for dtype, at in places.items())
    kind, dtype = "mixed types" if len(found) > 1 else "a type that MoE Lab does not read", ""
    if "F64" in found:
        dtype = ", dtype='float32'"
    raise UnsupportedModelError(
        f"{name!r} has experts of {kind} ({where}); make them one, which is what transformers does when it loads them: "
        f"python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained({name!r}{dtype})"
        f".save_pretrained('{Path(name).name}-one-type')\", and copy its tokenizer files"
    )


def _ranges(numbers: list[int]) -> str:
    """Whole numbers in words.

    >>> _ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
