"""A random checkpoint laid out like a real one. ``python benchmarks/make_checkpoint.py --like olmoe FOLDER``

Sharded bfloat16 safetensors with the names of the original files, so that loading, reading and computing cost what
they cost on the real one. Written shard by shard: the model never stands in memory. It has no tokenizer (prompts
are token ids), and as its weights are random it says nothing about routing or quality: use it for speed only.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from tqdm import tqdm

from moe_lab.units import format_bytes

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "olmoe": ("Olmoe", dict(
        vocab_size=50304, hidden_size=2048, intermediate_size=1024, num_hidden_layers=16, num_attention_heads=16,
        num_key_value_heads=16, num_experts=64, num_experts_per_tok=8, norm_topk_prob=False,
        max_position_embeddings=4096, eos_token_id=50279, pad_token_id=1)),
    "qwen1.5-moe": ("Qwen2Moe", dict(
        vocab_size=151936, hidden_size=2048, intermediate_size=5632, moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=16,
        num_experts=60, num_experts_per_tok=4, norm_topk_prob=False, decoder_sparse_step=1,
        max_position_embeddings=8192, rope_theta=1e6, use_sliding_window=False, eos_token_id=151643)),
    "qwen3-30b-a3b": ("Qwen3Moe", dict(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_hidden_layers=48,
        num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], max_position_embeddings=40960, rope_theta=1e6,
        eos_token_id=151645)),
}
"""Family of transformers and the numbers of OLMoE-1B-7B, Qwen1.5-MoE-A2.7B and Qwen3-30B-A3B."""


def configuration(like: str, layers: int | None) -> Any:
    """The configuration of the real model, with another number of layers if asked."""
    family, numbers = SHAPES[like]
    changes = {} if layers is None else {"num_hidden_layers": layers}
    config = getattr(transformers, f"{family}Config")(**{**numbers, **changes})
    config.architectures, config.dtype = [f"{family}ForCausalLM"], "bfloat16"
    return config


def tensors(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of the checkpoint, in the order of the layers; experts one by one, as published."""
    architecture = getattr(transformers, config.architectures[0])
    with torch.device("meta"):
        model = architecture(config)
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if name.endswith("experts.gate_up_proj"):
            E, twice_F, D = shape
            stem = name.removesuffix("gate_up_proj")
            for expert in range(E):
                yield f"{stem}{expert}.gate_proj.weight", (twice_F // 2, D)
                yield f"{stem}{expert}.up_proj.weight", (twice_F // 2, D)
                yield f"{stem}{expert}.down_proj.weight", (D, twice_F // 2)
        elif not name.endswith("experts.down_proj"):
            yield name, shape


class Noise:
    """Random weights, cut at random places from one pool of normal numbers: making new ones would take minutes."""

    def __init__(self, seed: int, size: int = 1 << 25) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(size, generator=self._random).bfloat16()

    def __call__(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of that shape: norms 1, biases small, matrices so that activations keep their size."""
        if "norm" in name:
            return torch.ones(shape, dtype=torch.bfloat16)
        n = math.prod(shape)
        start = int(torch.randint(self._pool.numel(), (1,), generator=self._random))
        pieces, missing = [], n
        while missing:
            piece = self._pool[start : start + missing]
            pieces.append(piece)
            missing, start = missing - piece.numel(), 0
        return (torch.cat(pieces) * (0.02 if len(shape) == 1 else shape[-1] ** -0.5)).view(shape)


def write(config: Any, folder: Path, shard_bytes: int, seed: int = 0) -> int:
    """Write configuration, shards and index; returns the bytes of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    listed, noise = list(tensors(config)), Noise(seed)
    sizes = [2 * math.prod(shape) for _, shape in listed]
    shards: list[list[int]] = [[]]
    for i, size in enumerate(sizes):
        if shards[-1] and sum(sizes[j] for j in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(i)
    where = {}
    with tqdm(total=sum(sizes), unit="B", unit_scale=True, desc=folder.name) as bar:
        for number, members in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_file({listed[i][0]: noise(*listed[i]) for i in members}, folder / file, metadata={"format": "pt"})
            where.update({listed[i][0]: file for i in members})
            bar.update(sum(sizes[i] for i in members))
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)                # last: without it the folder is no checkpoint
    return sum(sizes)


def main() -> None:
    """Parse, write, say what was written."""
    parser = argparse.ArgumentParser(prog="python benchmarks/make_checkpoint.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--like", choices=SHAPES, required=True)
    parser.add_argument("--layers", type=int, help="fewer layers than the real one has")
    parser.add_argument("--shard", type=float, default=1.0, help="GB of a shard (%(default)g)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if (args.folder / "config.json").exists():
        parser.error(f"{args.folder} holds a checkpoint already; name another folder")
    if args.layers is not None and args.layers < 1:
        parser.error("--layers must be 1 or more")
    size = write(configuration(args.like, args.layers), args.folder, int(args.shard * 1e9), args.seed)
    print(f"{args.folder}: random weights in the shape of {args.like}, {format_bytes(size)}; for speed only")


if __name__ == "__main__":
    main()
