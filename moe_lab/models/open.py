"""Opening a checkpoint: its numbers without its weights, or the model with everything but its experts.

Knows the order of things: configuration, headers, skeleton, blocks, plan, rules, weights. Everything that
can be wrong with a checkpoint is found before the first weight is read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, DynamicCache

from moe_lab.errors import CheckpointError, SettingError
from moe_lab.kernels.formats import FORMATS
from moe_lab.models import hub
from moe_lab.models.find import Block, find_blocks, loading, model_class, past_numbers, read_config, skeleton
from moe_lab.models.hub import first_line
from moe_lab.models.plan import dense_bytes, expert_plan
from moe_lab.models.quantised import quantise_dense
from moe_lab.models.rules import RouterRule, find_rules
from moe_lab.models.streaming import BlockHandler, PassHandler, Socket, hook_routers, streaming_class
from moe_lab.spec import ModelSpec, WeightFormat
from moe_lab.store import ExpertPlan, TensorEntry, read_checkpoint
from moe_lab.store.safetensors import ITEM_BYTES

OWN_PRECISION: dict[str, WeightFormat] = {"F32": "f32", "BF16": "bf16", "F16": "f32"}
"""The format that changes nothing, by the type in the file (float16 fits into float32)."""
DTYPES: dict[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}
"""torch's type of the dense part, by weight format."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
                    "tokenizer_config.json")


@dataclass
class StreamedModel:
    """An open model: everything but its experts, and where those are.

    ``rules`` has one per MoE block, or is None where routing policies are off (``spec.routing`` says why).
    """

    hf: Any
    tokenizer: Any | None
    spec: ModelSpec
    rules: list[RouterRule] | None
    plan: ExpertPlan
    blocks: list[Block]
    folder: Path

    @property
    def activation(self) -> str:
        """Name of the experts' activation, as the kernels call it."""
        return self.blocks[0].activation

    def connect(self, handler: BlockHandler, watch: PassHandler | None = None) -> None:
        """From now on ``handler`` computes the experts and, where ``rules`` are known, routes; ``watch`` stands around
        every pass."""
        socket: Socket = self.hf.moe_lab_socket
        socket.handler = handler
        if watch is not None:
            socket.watch = watch

    def new_past(self) -> Any:
        """An empty cache of keys and values for a new text."""
        return DynamicCache(config=self.hf.config)


@dataclass(frozen=True)
class Study:
    """What configuration and headers tell, before any weight is read."""

    config: Any
    blocks: list[Block]
    plan: ExpertPlan
    rules: list[RouterRule] | None
    spec: ModelSpec


def info(name: str | os.PathLike[str]) -> ModelSpec:
    """What a model is, in numbers; loads no weights. For a hub id only json files and headers are fetched.

    Raises ``CheckpointError`` and ``UnsupportedModelError`` as ``open_model`` would.

    >>> spec = info("pocket")
    >>> spec.family, spec.L, spec.experts, spec.top_k
    ('olmoe', 6, 64, 8)
    """
    folder = hub.local_folder(name)
    if folder is not None:
        return describe(folder, os.fspath(name))
    folder, tensors = hub.remote_headers(str(name))
    return _study(read_config(folder, str(name)), str(name), tensors).spec


def describe(folder: Path, name: str | None = None) -> ModelSpec:
    """What the checkpoint in ``folder`` is, in numbers, from its configuration and its headers."""
    return study(folder, name).spec


def study(folder: Path, name: str | None = None) -> Study:
    """Everything about the checkpoint in ``folder`` short of its weights; ``open_model`` goes on from there.

    >>> study(hub.packaged(), "pocket").plan.expert_bytes
    98304
    """
    name = name or str(folder)
    return _study(read_config(folder, name), name, read_checkpoint(folder))


def open_model(folder: str | os.PathLike[str], dtype: torch.dtype | None = None, *,
               name: str | None = None, studied: Study | None = None, quantise: str | None = None) -> StreamedModel:
    """The model without its experts; not one of their bytes is read.

    Args:
        folder: "pocket", a local folder or a hub id.
        dtype: torch.float32 or torch.bfloat16 for the dense part; None is the checkpoint's own precision.
        name: what messages and ``spec`` call it; by default ``folder``.
        studied: the ``study`` of the same folder, so that a large one is not looked through twice.
        quantise: "q8" or "q4" for the linear layers of the dense part; None leaves them as they are.

    Raises ``CheckpointError`` where something is missing or damaged, ``UnsupportedModelError`` for a dense
    model or one that is not understood.

    >>> model = open_model("pocket")
    >>> type(model.hf).__name__, model.spec.dtype
    ('OlmoeForCausalLM', 'bf16')
    """
    if dtype is not None and dtype not in DTYPES.values():
        raise SettingError(f"no dense part in {dtype}; possible are {', '.join(map(str, DTYPES.values()))}")
    name = os.fspath(folder) if name is None else name
    folder = hub.resolve_model(folder)
    found = studied or study(folder, name)
    model = _load(folder, name, found, dtype or DTYPES[found.spec.dtype])
    if quantise is not None:
        quantise_dense(model, quantise)
    if found.rules is not None:
        hook_routers(model, found.blocks)
    return StreamedModel(model, _tokenizer(folder, name), found.spec, found.rules, found.plan, found.blocks, folder)


def _study(config: Any, name: str, tensors: dict[str, TensorEntry]) -> Study:
    """Everything that configuration and headers tell."""
    bones = skeleton(config, name)
    blocks = find_blocks(bones, name)
    plan = expert_plan(bones, blocks, tensors, name)
    text = config.get_text_config()
    K = int(text.num_experts_per_tok)
    routers = [bones.get_submodule(block.router) if block.router else None for block in blocks]
    rules, words = find_rules(text, routers, K)
    first = blocks[0]
    spec = ModelSpec(
        name=name, family=config.model_type, layers=tuple(b.layer for b in blocks), experts=first.E, top_k=K,
        hidden=first.D, expert_hidden=first.F,
        expert_bytes={key: format.slot_bytes(first.D, first.F) for key, format in FORMATS.items()},
        dense_bytes=dense_bytes(tensors, plan), dtype=OWN_PRECISION[plan.dtype],
        context=int(text.max_position_embeddings), routing=words,
        past_bytes=past_numbers(text) * ITEM_BYTES[plan.dtype],
    )
    return Study(config, blocks, plan, rules, spec)


def _load(folder: Path, name: str, found: Study, dtype: torch.dtype) -> Any:
    """The dense part, by transformers' own loader."""
    streamed = streaming_class(model_class(found.config, name), found.blocks)
    try:
        with loading():
            model, report = streamed.from_pretrained(folder, config=found.config, dtype=dtype, local_files_only=True,
                                                     use_safetensors=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{name!r} cannot be loaded: {first_line(error)}") from error
    if absent := sorted(report["missing_keys"]):
        raise CheckpointError(f"{name!r} lacks {len(absent)} tensors of its dense part: {', '.join(absent[:3])}"
                              f"{' ...' if len(absent) > 3 else ''}; the checkpoint is incomplete")
    for parameter in model.parameters():            # the loader leaves views of the mapped file: a file that is
        parameter.data = parameter.data.clone()     # rewritten in place would change the model or end the process
    return model.eval().requires_grad_(False)


def _tokenizer(folder: Path, name: str) -> Any | None:
    """The tokenizer of the folder; None where it has none."""
    if not any((folder / file).exists() for file in _TOKENIZER_FILES):
        return None
    try:
        with loading():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes the library raise
        there = ", ".join(file for file in _TOKENIZER_FILES if (folder / file).exists())
        raise CheckpointError(f"the tokenizer of {name!r} cannot be read: {first_line(error)}; fetch the files {there} "
                              f"again") from error
