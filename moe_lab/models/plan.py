"""Where each expert's matrices lie: transformers' own conversion table, applied to the names in a checkpoint.

Knows the operations by which transformers builds its fused expert tensors, and undoes them in thought:
an expert is a place in a file, not a tensor. Knows no family; a list of operations it has not met is
refused by its names rather than guessed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from moe_lab.errors import CheckpointError, UnsupportedModelError
from moe_lab.models.find import Block
from moe_lab.store.plan import ExpertPlan
from moe_lab.store.safetensors import ITEM_BYTES, TensorEntry

READABLE = ("F32", "BF16", "F16")
"""Types of expert tensors that a store can read."""

Place = tuple[TensorEntry, int]
"""A matrix: the tensor that holds it, and the bytes before it in there."""
Sources = dict[str | None, list[str]]
"""Checkpoint names behind one fused tensor, by the pattern that matched; in the order of the experts."""


def expert_plan(model: Any, blocks: list[Block], tensors: dict[str, TensorEntry], name: str) -> ExpertPlan:
    """The plan of all experts of ``model`` (a skeleton, before its experts are swapped).

    Raises ``CheckpointError`` for tensors that are missing or of the wrong shape, ``UnsupportedModelError``
    for a conversion or a type that is not understood.
    """
    sources, converters = _sources(model, tensors)
    files = tuple(sorted({t.file for t in tensors.values()}))
    number = {path: i for i, path in enumerate(files)}
    rows = []
    for block in blocks:
        gate_up = _parts(block, "gate_up_proj", sources, converters, tensors, name)
        down = _parts(block, "down_proj", sources, converters, tensors, name)
        rows.append([(*gate_up[e], *down[e]) for e in range(block.E)])
    dtype = _one_dtype({part[0].dtype for layer in rows for expert in layer for part in expert}, name)
    first = blocks[0]
    return ExpertPlan(
        files=files,
        file=np.array([[[number[t.file] for t, _ in expert] for expert in layer] for layer in rows], np.int32),
        offset=np.array([[[t.offset + skip for t, skip in expert] for expert in layer] for layer in rows], np.int64),
        tensors=tuple(tuple((g[0].name, u[0].name, d[0].name) for g, u, d in layer) for layer in rows),
        dtype=dtype, item_bytes=ITEM_BYTES[dtype], D=first.D, F=first.F,
    )


def _sources(model: Any, tensors: dict[str, TensorEntry]) -> tuple[dict[str, Sources], dict[str, WeightConverter]]:
    """For each name in the model, the checkpoint names that make it; and the converter behind each pattern."""
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
    return sources, {pattern: c for c in converters for pattern in c.source_patterns}


def _parts(block: Block, leaf: str, sources: dict[str, Sources], converters: dict[str, WeightConverter],
           tensors: dict[str, TensorEntry], name: str) -> list[tuple[Place, ...]]:
    """For each expert the places of the matrices in ``leaf``: two for gate_up_proj, one for down_proj."""
    count = 2 if leaf == "gate_up_proj" else 1
    shape = (block.F, block.D) if count == 2 else (block.D, block.F)
    found = sources.get(f"{block.experts}.{leaf}")
    if not found:
        raise CheckpointError(f"{name!r} lacks the experts of layer {block.layer}: nothing in its files becomes "
                              f"{block.experts}.{leaf}; the checkpoint is incomplete")
    if None in found:
        return _fused(tensors[found[None][0]], block.E, count, shape, name)
    converter = converters[next(iter(found))]  # type: ignore[index]
    _check_operations(converter, count, block, name)
    columns = [found.get(pattern, []) for pattern in converter.source_patterns]
    for pattern, keys in zip(converter.source_patterns, columns, strict=True):
        if len(keys) != block.E:
            raise CheckpointError(f"{name!r} has {len(keys)} tensors like {pattern!r} in layer {block.layer}, and its "
                                  f"configuration says {block.E} experts; the checkpoint is incomplete")
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


def _one_dtype(dtypes: set[str], name: str) -> str:
    if len(dtypes) > 1 or not dtypes <= set(READABLE):
        raise UnsupportedModelError(f"{name!r} has experts of type {', '.join(sorted(dtypes))}; MoE Lab reads one of "
                                    f"{', '.join(READABLE)}: take the unquantised checkpoint")
    return dtypes.pop()


def dense_bytes(tensors: dict[str, TensorEntry], plan: ExpertPlan) -> int:
    """Bytes of everything in the checkpoint that is not a routed expert."""
    return sum(t.nbytes for t in tensors.values()) - plan.nbytes
