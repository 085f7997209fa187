"""Tiny random checkpoints in the layout of the real ones, and two handlers that compute their experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional as F

from moe_lab.kernels.formats import Format
from moe_lab.models import StreamedModel
from moe_lab.store import ExpertStore, Readers

COMMON = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=160,
              num_experts_per_tok=2, max_position_embeddings=256,
              pad_token_id=None, bos_token_id=None, eos_token_id=None)

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "olmoe": ("Olmoe", dict(intermediate_size=48, num_experts=8, norm_topk_prob=False)),
    "olmoe-tied": ("Olmoe", dict(intermediate_size=48, num_experts=8, norm_topk_prob=False, tie_word_embeddings=True)),
    "qwen2-moe": ("Qwen2Moe", dict(intermediate_size=96, moe_intermediate_size=32, shared_expert_intermediate_size=80,
                                   num_experts=8, norm_topk_prob=False, decoder_sparse_step=1)),
    "qwen3-moe": ("Qwen3Moe", dict(intermediate_size=96, moe_intermediate_size=32, num_experts=8, norm_topk_prob=True,
                                   head_dim=16, decoder_sparse_step=1, mlp_only_layers=[1])),
    "mixtral": ("Mixtral", dict(intermediate_size=48, num_local_experts=8)),
}
"""Families with a router rule: class name and what is special in the configuration."""

STRANGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("GraniteMoe", dict(intermediate_size=48, num_local_experts=8)),
    "gpt-oss": ("GptOss", dict(intermediate_size=48, num_local_experts=8, head_dim=16)),
    "deepseek-v3": ("DeepseekV3", dict(
        intermediate_size=96, moe_intermediate_size=32, n_routed_experts=8, n_group=1, topk_group=1, kv_lora_rank=16,
        q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, num_key_value_heads=4,
        first_k_dense_replace=0)),
    "ernie": ("Ernie4_5_Moe", dict(intermediate_size=96, moe_intermediate_size=32, moe_num_experts=8, moe_k=2,
                                   moe_layer_start_index=0, moe_layer_end_index=2)),
    "llama": ("Llama", dict(intermediate_size=96)),
}
"""Without a rule, of forms that are not supported, with a bias on the ranking, and dense."""


def make(folder: Path, family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, shard: str = "50GB",
         **changes: Any) -> Path:
    """Write a random checkpoint (std 0.15, so that logits and routes differ) with ``save_pretrained``."""
    stem, special = (FAMILIES | STRANGERS)[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{stem}Config")(**{**COMMON, **special, **changes})
    model = getattr(transformers, f"{stem}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.normal_(std=0.15)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def eager(folder: Path, dtype: torch.dtype = torch.float32, experts: str = "eager") -> Any:
    """The whole model by transformers alone."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation=experts).eval()


class TorchHandler:
    """Reads each expert when it is used and computes it with torch; routes by the rule, or not at all."""

    def __init__(self, model: StreamedModel, format: Format, route: bool = True) -> None:
        self.model, self.format, self.routes = model, format, route
        self.store = ExpertStore(model.plan, format)
        self.slot = np.empty(self.store.slot_bytes, np.uint8)
        self.routed = 0

    def route(self, layer: int, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        self.routed += 1
        if not self.routes:
            return None
        rule = self.model.rules[layer]
        gates, ids = rule.weights(logits).topk(self.model.spec.top_k, -1)
        return ids, torch.from_numpy(rule.finish(gates.numpy(), ids.numpy()))

    def compute(self, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(x.shape)
        for expert in ids.unique().tolist():
            self.store.read(layer, expert, self.slot)
            parts = self.format.decode(self.slot, self.model.spec.hidden, self.model.spec.expert_hidden)
            gate, up, down = (torch.from_numpy(part) for part in parts)
            token, place = torch.where(ids == expert)
            rows = x[token].float()
            y = F.linear(F.silu(F.linear(rows, gate)) * F.linear(rows, up), down)
            out.index_add_(0, token, y * weights[token, place, None].float())
        return out.to(x.dtype)


class KernelHandler(TorchHandler):
    """Holds all experts in an arena and runs every token through ``ffn_token``."""

    def __init__(self, model: StreamedModel, format: Format) -> None:
        super().__init__(model, format)
        L, E = model.spec.L, model.spec.experts
        self.arena = np.empty((L, E, self.store.slot_bytes), np.uint8)
        readers = Readers(self.store)
        for layer in range(L):
            readers.load(layer, [(e, self.arena[layer, e]) for e in range(E)])

    def compute(self, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows, out = x.float().numpy(), np.empty(x.shape, np.float32)
        chosen, gates = ids.numpy().astype(np.int32), weights.float().numpy()
        for t in range(len(rows)):
            self.format.ffn_token(rows[t], self.arena[layer], chosen[t], gates[t], out[t],
                                  self.model.spec.expert_hidden, self.model.activation)
        return torch.from_numpy(out).to(x.dtype)
