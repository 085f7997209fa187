"""Parts of a streamed model that are called by themselves: the model without its head is a pass like any other."""

from __future__ import annotations

import pytest
import torch
from checkpoints import FAMILIES, eager

import moe_lab as ml
from moe_lab.errors import SettingError

IDS = torch.tensor([[5, 17, 3, 90, 41, 7]])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_without_its_head_gives_the_same_hidden_states_and_is_counted(checkpoint, family):
    folder = checkpoint(family)
    engine, whole = ml.load(str(folder), cache=4), eager(folder)
    with torch.no_grad():
        truth = whole.model(IDS).last_hidden_state
        for call in (engine.hf.model, engine.hf.get_decoder()):
            before = engine.telemetry.token
            states = call(IDS).last_hidden_state
            assert (states - truth).abs().max() <= 1e-5 * truth.abs().max()
            assert engine.telemetry.token == before + IDS.numel()
            assert (engine.telemetry.snapshot().resident == engine.cache.resident).all()


def test_a_layer_called_alone_is_refused_and_the_engine_goes_on(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache=4)
    expected = engine.generate(IDS[0].tolist(), max_new_tokens=6).ids
    x = torch.zeros(1, 2, engine.hf.config.hidden_size)
    for part in (engine.hf.model.layers[0].mlp, engine.hf.model.layers[1].mlp):
        with pytest.raises(SettingError, match=r"call engine\.hf\("):
            part(x)
    assert engine.generate(IDS[0].tolist(), max_new_tokens=6).ids == expected


def test_a_trainable_module_before_the_experts_is_computed_with(checkpoint):
    folder = checkpoint("olmoe")
    engine, whole = ml.load(str(folder), cache=4), eager(folder)
    for hf in (engine.hf, whole):
        torch.manual_seed(0)
        part = hf.model.layers[0]
        part.self_attn.o_proj = torch.nn.Sequential(part.self_attn.o_proj, torch.nn.Linear(64, 64))
    truth, logits = (hf(IDS).logits.detach() for hf in (whole, engine.hf))
    assert (truth - logits).abs().max() <= 1e-5 * truth.abs().max()


def test_a_score_under_autocast_is_computed(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache=4)
    plain = engine.score(IDS[0].tolist()).perplexity
    with torch.autocast("cpu", torch.bfloat16):
        assert engine.score(IDS[0].tolist()).perplexity == pytest.approx(plain, rel=0.05)
