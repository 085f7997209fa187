"""A quantised dense part: what is exchanged, that kernels and modules agree, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, eager
from torch import nn

import moe_lab as ml
from moe_lab.errors import SettingError
from moe_lab.models.quantised import QuantisedLinear

IDS = (np.arange(60) * 37 % 160).tolist()


@pytest.mark.parametrize(("family", "format"), [*((family, "q8") for family in FAMILIES), ("olmoe", "q4")])
def test_kernels_and_modules_agree_over_a_quantised_dense_part(checkpoint, family, format):
    engine = ml.load(str(checkpoint(family)), cache="50%", dense=format)
    x, past, rows = torch.tensor([IDS]), engine.new_past(), []
    with torch.inference_mode():
        whole = engine.hf(input_ids=x, use_cache=False).logits[0, 30:]
        engine.hf(input_ids=x[:, :30], past_key_values=past, use_cache=True)
        lean = engine.lean_decode(past, 60)
        for t in range(30, 60):
            with engine.one_pass(rows=1, length=1, cached=True):
                rows.append(lean(IDS[t]).copy())
    far = np.abs(np.stack(rows) - whole.numpy()).max() / float(whole.abs().max())
    assert engine.decoding == "kernels" and not engine.exact
    assert far < 0.05       # a float32 that falls to the other side of a byte is a 127th of its group


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_are_exchanged_and_routers_embedding_and_norms_are_not(checkpoint, family):
    engine = ml.load(str(checkpoint(family)), cache="50%", weights="q8")
    plain = [name for name, module in engine.hf.named_modules() if type(module) is nn.Linear]
    assert all(name.endswith("shared_expert_gate") for name in plain)
    assert isinstance(engine.hf.lm_head, QuantisedLinear) and type(engine.hf.model.embed_tokens) is nn.Embedding
    model = eager(checkpoint(family))
    router = next(name for name, _ in model.named_parameters() if name.endswith("mlp.gate.weight"))
    torch.testing.assert_close(engine.hf.get_parameter(router), model.get_parameter(router))


def test_fewer_bytes_are_touched_and_the_engine_says_what_it_is(checkpoint):
    folder = str(checkpoint("qwen2-moe"))
    touched = {}
    for dense in ("f32", "q8", "q4"):
        engine = ml.load(folder, cache="100%", dense=dense)
        touched[dense] = list(engine.stream(IDS[:5], max_new_tokens=3, stop_at_end=False))[-1].touched_bytes
        assert engine.exact == (dense == "f32")
        assert (f"dense {dense}" in repr(engine)) == (dense != "f32") == (f"dense {dense}" in engine.setting)
    assert touched["q4"] < touched["q8"] < touched["f32"]


def test_beside_quantised_experts_the_dense_part_is_q8_unless_told(checkpoint):
    folder = str(checkpoint("olmoe"))
    assert [ml.load(folder, weights=w, cache="50%").dense for w in ("q8", "q4", "bf16", None)] == [
        "q8", "q8", "bf16", "f32"]
    kept = ml.load(folder, weights="q4", dense="f32", cache="50%")
    assert type(kept.hf.lm_head) is nn.Linear and kept.precision == "q4, dense f32" and not kept.exact


def test_an_unknown_format_of_the_dense_part_is_refused_before_anything_is_loaded(checkpoint):
    with pytest.raises(SettingError, match="dense='int8' is not a format; type one of 'f32', 'bf16', 'q8', 'q4'"):
        ml.load(str(checkpoint("olmoe")), dense="int8")


def test_a_quantised_layer_is_close_to_its_original_in_every_type():
    torch.manual_seed(0)
    linear, x = nn.Linear(96, 40), torch.randn(2, 3, 96)
    layer = QuantisedLinear(linear, "q8")
    assert layer(x).shape == (2, 3, 40) and layer(x.bfloat16()).dtype == torch.bfloat16
    truth = linear(x)
    assert ((layer(x) - truth).norm() / truth.norm()).item() < 0.012


@pytest.mark.parametrize(("weights", "within"), [("q8", 0.002), ("q4", 0.03)])
def test_the_pocket_model_loses_little(weights, within):
    text = ml.pocket.held_out("python")[:6000]
    plain, quantised = (ml.load("pocket", cache="100%", weights=w).score(text) for w in (None, weights))
    assert abs(quantised.perplexity / plain.perplexity - 1) < within
