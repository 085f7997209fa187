"""Random checkpoints in the layout of real ones: transformers and the engine load them and agree."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import moe_lab as ml

_spec = importlib.util.spec_from_file_location(
    "make_checkpoint", Path(__file__).parents[2] / "benchmarks" / "make_checkpoint.py")
assert _spec is not None and _spec.loader is not None
make_checkpoint = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_checkpoint)

TINY = dict(vocab_size=96, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=6,
            num_experts_per_tok=2, intermediate_size=24, moe_intermediate_size=16, shared_expert_intermediate_size=40,
            max_position_embeddings=64, eos_token_id=None, pad_token_id=None)


@pytest.mark.parametrize("like", make_checkpoint.SHAPES)
def test_a_checkpoint_of_a_real_layout_loads_everywhere_alike(tmp_path, monkeypatch, like):
    family, numbers = make_checkpoint.SHAPES[like]
    monkeypatch.setitem(make_checkpoint.SHAPES, like, (family, {**numbers, **TINY}))
    config = make_checkpoint.configuration(like, 2)
    size = make_checkpoint.write(config, tmp_path, shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2 and index["metadata"]["total_size"] == size
    assert "model.layers.1.mlp.experts.5.down_proj.weight" in index["weight_map"]
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True,
                                                          experts_implementation="eager")
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        theirs = model.eval()(input_ids=ids).logits
    engine = ml.load(str(tmp_path), cache="50%", weights="f32")
    mine = engine.hf(input_ids=ids).logits
    assert engine.spec.L == 2 and theirs.std() > 0.1
    assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_the_real_shapes_have_the_sizes_that_are_published():
    sizes = {}
    for like in make_checkpoint.SHAPES:
        config = make_checkpoint.configuration(like, None)
        numbers = [torch.Size(shape).numel() for _, shape in make_checkpoint.tensors(config)]
        sizes[like] = round(sum(numbers) / 1e9, 1)
    assert sizes == {"olmoe": 6.9, "qwen1.5-moe": 14.3, "qwen3-30b-a3b": 30.5}
