"""A model that routes by itself, whatever its router chooses: computed as it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import eager

import moe_lab as ml
from moe_lab.errors import UnsupportedModelError

IDS = [5, 17, 3, 90, 41, 7, 120, 66]


@pytest.fixture
def models(checkpoint, monkeypatch):
    """An engine of a family without a rule, and the same model whole; ``choose(x)`` makes both routers choose so."""
    monkeypatch.setattr("moe_lab.models.rules.RULES", {})
    folder = checkpoint("olmoe")
    engine, whole = ml.load(str(folder), cache=4), eager(folder)
    assert not engine.routes

    def choose(change) -> None:
        for hf in (engine.hf, whole):
            for layer in hf.model.layers:
                layer.mlp.gate.register_forward_hook(lambda router, args, out: (out[0], *change(out[1], out[2])))

    return engine, whole, choose


def same(engine, whole, ids) -> bool:
    with torch.no_grad():
        truth, mine = (hf(torch.tensor([ids])).logits for hf in (whole, engine.hf))
    return bool((mine - truth).abs().max() <= 1e-5 * truth.abs().max())


@pytest.mark.parametrize("length", [1, 8])
@pytest.mark.parametrize("change", [
    lambda gates, ids: (gates, ids[:, :1].expand(-1, 2).contiguous()),                      # an expert twice
    lambda gates, ids: (gates.flip(-1), ids),                                               # the lighter one first
    lambda gates, ids: (torch.cat([gates, gates * 0.5], -1), torch.cat([ids, (ids + 1) % 8], -1)),  # more than top-k
    lambda gates, ids: (gates[:, :1], ids[:, :1]),                                          # fewer
], ids=["twice", "in another order", "four", "one"])
def test_what_the_router_chose_is_computed_as_it_is(models, change, length):
    engine, whole, choose = models
    choose(change)
    for _ in range(2):
        assert same(engine, whole, IDS[:length])
    layers = engine._core.experts
    for here, state in zip(layers.layers, layers.states, strict=True):
        assert np.array_equal(here.slot_of >= 0, state.resident)


def test_an_expert_that_there_is_not_is_refused_before_any_memory_is_read(models):
    engine, _, choose = models
    choose(lambda gates, ids: (gates, ids + 100))
    with pytest.raises(UnsupportedModelError, match="chose expert"):
        engine.hf(torch.tensor([IDS[:1]]))
