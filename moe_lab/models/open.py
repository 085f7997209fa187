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

from moe_lab.errors import CheckpointError, SettingError, UnsupportedModelError, foreign
from moe_lab.kernels.formats import FORMATS
from moe_lab.models import hub
from moe_lab.models.dense import check_dense, load_dense
from moe_lab.models.find import Block, find_blocks, loading, model_class, past_numbers, read_config, skeleton
from moe_lab.models.plan import expert_plan, find_names
from moe_lab.models.quantised import quantise_dense
from moe_lab.models.rules import RouterRule, find_rules
from moe_lab.models.streaming import BlockHandler, PassHandler, Socket, hook_routers, streaming_class
from moe_lab.models.trial import check_runs
from moe_lab.spec import ModelSpec, WeightFormat
from moe_lab.store import Checkpoint, ExpertPlan, read_checkpoint
from moe_lab.store.look import require
from moe_lab.store.safetensors import ITEM_BYTES

OWN_PRECISION: dict[str, WeightFormat] = {"F32": "f32", "BF16": "bf16", "F16": "f32"}
"""The format that changes nothing, by the type in the file (float16 fits into float32)."""
DTYPES: dict[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}
"""torch's type of the dense part, by weight format."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
                    "tokenizer_config.json")
_BESIDE_TOKENIZER = ("merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


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
    """What configuration and headers tell, before any weight is read; the files of ``checkpoint`` stay open for it."""

    config: Any
    checkpoint: Checkpoint
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
    name = hub.model_name(name)
    if folder is not None:
        return describe(folder, name)
    folder = hub.remote_folder(name)
    config = read_config(folder, name)
    return _study(config, name, hub.remote_headers(name, folder, _named(config))).spec


def describe(folder: Path, name: str | None = None) -> ModelSpec:
    """What the checkpoint in ``folder`` is, in numbers, from its configuration and its headers."""
    found = study(folder, name)
    found.checkpoint.files.close()
    return found.spec


def study(folder: Path, name: str | None = None) -> Study:
    """Everything about the checkpoint in ``folder`` short of its weights; ``open_model`` goes on from there.

    >>> study(hub.packaged(), "pocket").plan.expert_bytes
    98304
    """
    name = name or str(folder)
    config = read_config(folder, name)
    checkpoint = read_checkpoint(folder, _named(config))
    try:
        return _study(config, name, checkpoint)
    except BaseException:
        checkpoint.files.close()
        raise


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
    name = hub.model_name(folder) if name is None else name
    folder = hub.resolve_model(folder)
    found = studied or study(folder, name)
    try:
        tokenizer = _tokenizer(folder, name)
        model = _load(folder, name, found, dtype or DTYPES[found.spec.dtype])
        if quantise is not None:
            quantise_dense(model, quantise)
    except BaseException:
        found.checkpoint.files.close()
        raise
    if found.rules is not None:
        hook_routers(model, found.blocks)
    return StreamedModel(model, tokenizer, found.spec, found.rules, found.plan, found.blocks, folder)


def _study(config: Any, name: str, checkpoint: Checkpoint) -> Study:
    """Everything that configuration and headers tell."""
    with foreign(f"the config.json of {name!r} does not fit its weights or itself"):
        text = config.get_text_config()
        _check_size(text, checkpoint, name)
        bones = skeleton(config, name)
        blocks = find_blocks(bones, name)
        K, context = _numbers(text, blocks[0].E, name)
        naming = find_names(bones, checkpoint.tensors)
        plan = expert_plan(blocks, naming, checkpoint, name)
        dense_bytes = check_dense(bones, blocks, naming, checkpoint.tensors, name)
        routers = [bones.get_submodule(block.router) if block.router else None for block in blocks]
        rules, words = find_rules(text, routers, K)
        past_bytes = past_numbers(text) * ITEM_BYTES[plan.dtype]
        check_runs(bones, name)
    first = blocks[0]
    spec = ModelSpec(
        name=name, family=config.model_type, layers=tuple(b.layer for b in blocks), experts=first.E, top_k=K,
        hidden=first.D, expert_hidden=first.F,
        expert_bytes={key: format.slot_bytes(first.D, first.F) for key, format in FORMATS.items()},
        dense_bytes=dense_bytes, dtype=OWN_PRECISION[plan.dtype], context=context, routing=words,
        past_bytes=past_bytes,
    )
    return Study(config, checkpoint, blocks, plan, rules, spec)


def _named(config: Any) -> object:
    """The weight file that a configuration names; None where it leaves that to the names of the files."""
    return getattr(config, "transformers_weights", None)


def _check_size(text: Any, checkpoint: Checkpoint, name: str) -> None:
    """Refuse a configuration of more layers than there are tensors: building its skeleton may have no end."""
    layers, tensors = getattr(text, "num_hidden_layers", 0), len(checkpoint.tensors)
    if isinstance(layers, int) and layers > tensors:
        raise CheckpointError(f"the config.json of {name!r} says num_hidden_layers = {layers:,}, and its files hold "
                              f"{tensors:,} tensors; they do not belong together")


def _numbers(text: Any, E: int, name: str) -> tuple[int, int]:
    """Experts per token, and the longest sequence, in tokens."""
    K, context = (getattr(text, key, None) for key in ("num_experts_per_tok", "max_position_embeddings"))
    if K is None:
        raise UnsupportedModelError(f"the config.json of {name!r} does not say how many experts a token uses "
                                    f"(num_experts_per_tok)")
    if type(K) is not int or not 1 <= K <= E:
        raise CheckpointError(f"the config.json of {name!r} says num_experts_per_tok = {K!r}, and a layer has {E} "
                              f"experts: it must be a whole number from 1 to {E}")
    if type(context) is not int or context < 1:
        raise CheckpointError(f"the config.json of {name!r} says max_position_embeddings = {context!r}; it must be a "
                              f"whole number of tokens, 1 or more")
    return K, context


def _load(folder: Path, name: str, found: Study, dtype: torch.dtype) -> Any:
    """The dense part, by transformers' own loader."""
    streamed = streaming_class(model_class(found.config, name), found.blocks)
    experts = {tensor for layer in found.plan.tensors for expert in layer for tensor in expert}
    return load_dense(streamed, found.config, found.checkpoint, experts, dtype, folder, name)


def _tokenizer(folder: Path, name: str) -> Any | None:
    """The tokenizer of the folder; None where it has none."""
    there = [file for file in _TOKENIZER_FILES if os.path.lexists(folder / file)]
    if not there:
        return None
    for file in (*there, *(file for file in _BESIDE_TOKENIZER if os.path.lexists(folder / file))):
        require(folder / file)
    with foreign(f"the tokenizer of {name!r} cannot be read (fetch {', '.join(there)} again)"), loading():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.decode(tokenizer("a b")["input_ids"])         # some settings are looked at only then
        return tokenizer
