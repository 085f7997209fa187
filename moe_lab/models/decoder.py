"""The dense part of a model as the decode kernels take it: views of transformers' own weights.

Knows where the known families keep their norms, projections, rotary table and head. Copies no matrix: the arrays are
the model's memory, so a weight changed in place is seen. What it does not know it refuses with the reason, and
transformers' modules do the work instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from moe_lab.kernels.activation import ACTIVATIONS
from moe_lab.kernels.decoder import Attention
from moe_lab.kernels.dense import GatedFFN, Weights
from moe_lab.models.find import Block, activation_of
from moe_lab.models.identity import LIBRARIES, replaced_code
from moe_lab.models.quantised import QuantisedLinear, matrix_of
from moe_lab.models.streaming import RouterHook

FAMILIES = frozenset({"olmoe", "qwen2_moe", "qwen3_moe", "mixtral"})
"""transformers' model types whose layers are what the kernels compute."""
_FIXED_ROTARY = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary embeddings whose angles depend on the position alone."""

_OWN_HOOKS = frozenset({"moe_lab.models.streaming", "transformers.utils.output_capturing"})
"""Modules whose hooks need not see a decoded token: ours lets policies choose, which kernels do themselves;
transformers leaves its own wherever hidden states or router logits were asked for once, and they act in such calls."""


@dataclass(frozen=True)
class DecoderLayer:
    """One layer: ``moe`` is its number among the MoE blocks, or None and ``ffn`` is the dense FFN in their place."""

    attention: Attention
    norm: np.ndarray
    """(D,) float32, before router or FFN."""
    moe: int | None
    router: np.ndarray
    """(E, D)."""
    ffn: GatedFFN
    """The shared expert of an MoE block (empty: none), or the FFN of a dense layer."""


@dataclass(frozen=True)
class Decoder:
    """All that one token goes through outside the routed experts."""

    layers: tuple[DecoderLayer, ...]
    embedding: np.ndarray
    """(V, D)."""
    norm: np.ndarray
    """(D,) float32, the last one."""
    head: Weights
    """(V, D)."""
    eps: np.float32
    H: int
    """Heads."""
    G: int
    """Groups of keys and values."""
    S: int
    """Numbers of a head."""
    activation: int
    rotary: nn.Module

    @property
    def ffn_width(self) -> int:
        """The widest dense FFN."""
        return max(int(layer.ffn.gate.shape[0]) for layer in self.layers)

    def angles(self, N: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin (N, S) float32 of the first N positions."""
        with torch.inference_mode():
            cos, sin = self.rotary(torch.zeros(1, 1, 1, dtype=torch.float32), torch.arange(N)[None])
        return cos[0].numpy().copy(), sin[0].numpy().copy()


def read_decoder(hf: Any, blocks: list[Block]) -> Decoder | str:
    """The dense part of ``hf`` as arrays, or in words why the kernels cannot run it.

    >>> from moe_lab.models import open_model
    >>> model = open_model("pocket")
    >>> decoder = read_decoder(model.hf, model.blocks)
    >>> len(decoder.layers), decoder.head.shape
    (6, (4096, 256))
    """
    try:
        return _unknown(hf, blocks) or _read(hf, blocks)
    except AttributeError as error:         # whatever stands in the place of a part, the modules can run it
        return f"a part of it has another form than it was loaded in: {error}"


def _read(hf: Any, blocks: list[Block]) -> Decoder:
    """The dense part of a model that the kernels can run."""
    config = hf.config
    at = {block.layer: (number, block) for number, block in enumerate(blocks)}
    layers = tuple(_layer(hf, layer, config, *at.get(number, (None, None)))
                   for number, layer in enumerate(hf.model.layers))
    first = layers[0].attention
    S = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return Decoder(layers, _array(hf.get_input_embeddings()), _vector(hf.model.norm.weight),
                   matrix_of(hf.get_output_embeddings()), np.float32(config.rms_norm_eps),
                   int(first.q.shape[0]) // S, int(first.k.shape[0]) // S, S, ACTIVATIONS[blocks[0].activation],
                   hf.model.rotary_emb)


def _unknown(hf: Any, blocks: list[Block]) -> str:
    """Why the kernels cannot run this model; empty where they can."""
    config = hf.config
    if config.model_type not in FAMILIES:
        return f"the layers of {config.model_type!r} are not known to the kernels"
    windows = [kind for kind in getattr(config, "layer_types", None) or [] if kind != "full_attention"]
    if windows or getattr(config, "sliding_window", None):
        return "its attention looks at a window of the text only"
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary not in _FIXED_ROTARY:
        return f"its rotary embedding ({rotary}) changes with the length of the text"
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return "a hook of all modules has to see every token"
    if reason := replaced_code(hf) or _exchanged(hf, blocks):
        return reason
    for name, module in hf.named_modules():
        if reason := _altered(module) or _unlike(module, config):
            return f"{name or 'the model'} {reason}"
        if isinstance(module, nn.Linear) and type(module) is not nn.Linear:      # an adapter's, perhaps
            return f"{name} is a {type(module).__name__}"
        if hasattr(module, "act_fn") and activation_of(module) != blocks[0].activation:
            return f"{name} has another activation than the experts"
    return ""


def _altered(module: nn.Module) -> str:
    """What somebody has put on or in a module that has to run at every token; empty where nothing."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    if any(getattr(hook, "__module__", "") not in _OWN_HOOKS for hook in hooks):
        return "has a hook, which has to see every token"
    if any(isinstance(hook, RouterHook) and hook.changed(module) for hook in hooks):
        return "chooses otherwise than when it was loaded"
    if "forward" in vars(module):
        return "has a forward of its own"
    if type(module).__module__.split(".")[0] not in LIBRARIES:
        return f"is a {type(module).__name__}, which the kernels do not know"
    return ""


def _unlike(module: Any, config: Any) -> str:
    """What a module computes otherwise than the configuration, which the kernels go by, says; empty where nothing."""
    if getattr(module, "variance_epsilon", config.rms_norm_eps) != config.rms_norm_eps:
        return f"has variance_epsilon = {module.variance_epsilon}, and the configuration {config.rms_norm_eps}"
    if hasattr(module, "q_proj") and module.scaling != module.head_dim**-0.5:
        return f"has another scaling than that of its heads: {module.scaling}"
    return ""


def _exchanged(hf: Any, blocks: list[Block]) -> str:
    """What stands in the place of a part that the kernels know, in words; empty where nothing."""
    layers, routers = hf.model.layers, [hf.get_submodule(str(block.router)) for block in blocks]
    if any(not any(isinstance(hook, RouterHook) for hook in router._forward_hooks.values()) for router in routers):
        return "a router stands in the place of the one that was loaded"
    if any(layer.self_attn.layer_idx != number for number, layer in enumerate(layers)):
        return "its layers stand in another order than they were loaded in"
    norms = [hf.model.norm, *(norm for one in layers for norm in (one.input_layernorm, one.post_attention_layernorm)),
             *(getattr(one.self_attn, name, None) for one in layers for name in ("q_norm", "k_norm"))]
    if odd := [norm for norm in norms if norm is not None and not hasattr(norm, "variance_epsilon")]:
        return f"{type(odd[0]).__name__} stands in the place of a norm"
    if (longest := hf.get_input_embeddings().max_norm) is not None:
        return f"its embedding has rows no longer than max_norm = {longest}"
    head = hf.get_output_embeddings()
    if type(head) not in (nn.Linear, QuantisedLinear):
        return f"{type(head).__name__} stands in the place of its head"
    biased = (name for name, module in hf.named_modules() if getattr(module, "bias", None) is not None)
    odd_bias = next((name for name in biased if not name.endswith(("q_proj", "k_proj", "v_proj", "o_proj"))), None)
    return f"{odd_bias} has a bias" if odd_bias else ""


def _layer(hf: Any, layer: Any, config: Any, moe: int | None, block: Block | None) -> DecoderLayer:
    attention = _attention(layer, config)
    norm = _vector(layer.post_attention_layernorm.weight)
    if block is None:
        return DecoderLayer(attention, norm, None, np.empty((0, 0), np.float32), _ffn(layer.mlp, None))
    assert block.router is not None
    router = _array(hf.get_submodule(block.router))
    shared = getattr(layer.mlp, "shared_expert", None)
    if shared is None:
        none = np.empty((0, block.D), dtype=router.dtype)
        return DecoderLayer(attention, norm, moe, router, GatedFFN(none, none, none, _ABSENT))
    return DecoderLayer(attention, norm, moe, router, _ffn(shared, getattr(layer.mlp, "shared_expert_gate", None)))


def _attention(layer: Any, config: Any) -> Attention:
    a = layer.self_attn
    parts = [a.q_proj, a.k_proj, a.v_proj, a.o_proj]
    limit = getattr(config, "clip_qkv", None)
    eps = np.array([config.rms_norm_eps, np.inf if limit is None else limit], dtype=np.float32)
    q_norm, k_norm = (_vector(getattr(getattr(a, name, None), "weight", None)) for name in ("q_norm", "k_norm"))
    q, k, v, o = (matrix_of(part) for part in parts)
    q_bias, k_bias, v_bias, o_bias = (_vector(part.bias) for part in parts)
    return Attention(_vector(layer.input_layernorm.weight), q, k, v, o, q_bias, k_bias, v_bias, o_bias, q_norm, k_norm,
                     eps)


def _ffn(module: Any, door: Any) -> GatedFFN:
    return GatedFFN(matrix_of(module.gate_proj), matrix_of(module.up_proj), matrix_of(module.down_proj),
                    _ABSENT if door is None else _vector(door.weight.reshape(-1)))


_ABSENT = np.empty(0, dtype=np.float32)


def _array(module: nn.Module) -> np.ndarray:
    """The weights of a module that is never quantised."""
    array = matrix_of(module)
    assert isinstance(array, np.ndarray)
    return array


def _vector(weight: torch.Tensor | None) -> np.ndarray:
    """A float32 copy of a vector; empty for None."""
    return _ABSENT if weight is None else weight.detach().float().numpy().copy()
