"""Routers that somebody changed or replaced after the load: refused, or computed as they choose; never by a rule that
is no longer theirs."""

from __future__ import annotations

import types

import pytest
import torch
from checkpoints import eager

import moe_lab as ml
from moe_lab.errors import SettingError, UnsupportedModelError

IDS = [5, 17, 3, 90, 41, 7, 120, 66]


class LeastLiked(torch.nn.Module):
    """A router that chooses those with the smallest logits."""

    def __init__(self, router: torch.nn.Module) -> None:
        super().__init__()
        self.weight = router.weight

    def forward(self, x):
        logits = -(x.reshape(-1, x.shape[-1]) @ self.weight.T)
        gates, ids = logits.softmax(-1).topk(2, -1)
        return logits, gates, ids


@pytest.fixture
def engine(checkpoint):
    return ml.load(str(checkpoint("olmoe")), cache=4)


def router(engine):
    return engine.hf.model.layers[1].mlp.gate


def test_a_replaced_router_chooses_as_in_the_whole_model_and_the_cache_follows_it(checkpoint, engine):
    whole = eager(checkpoint("olmoe"))
    for hf in (engine.hf, whole):
        hf.model.layers[1].mlp.gate = LeastLiked(hf.model.layers[1].mlp.gate)
    with torch.no_grad():
        truth, logits = (hf(torch.tensor([IDS])).logits for hf in (whole, engine.hf))
    assert (truth - logits).abs().max() <= 1e-5 * truth.abs().max()
    ids = whole.generate(torch.tensor([IDS]), max_new_tokens=12, do_sample=False)[0, len(IDS):].tolist()
    assert list(engine.generate(IDS, max_new_tokens=12).ids) == ids
    assert engine.decoding == "transformers' modules: a router stands in the place of the one that was loaded"
    assert (engine.telemetry.snapshot().resident == engine.cache.resident).all()


def test_a_policy_that_would_have_to_route_for_a_replaced_router_is_refused(engine):
    engine.hf.model.layers[1].mlp.gate = LeastLiked(router(engine))
    engine.routing = "cache-prior"
    with pytest.raises(SettingError, match="MoE layer 1, whose router was replaced"):
        engine.generate(IDS, max_new_tokens=4)
    engine.routing = "original"
    assert len(engine.generate(IDS, max_new_tokens=4).ids) == 4


def fewer_experts(router):
    router.top_k = 1


def other_gates(router):
    router.norm_topk_prob = True


def another_class(router):
    router.__class__ = type("Mine", (type(router),), {})


def another_forward(router):
    router.forward = types.MethodType(type(router).forward, router)


@pytest.mark.parametrize("change", [fewer_experts, other_gates, another_class, another_forward])
def test_a_router_that_was_changed_since_the_load_is_refused_by_name(engine, change):
    change(router(engine))
    assert engine.decoding.endswith("chooses otherwise than when it was loaded")
    for call in (lambda: engine.generate(IDS, max_new_tokens=4), lambda: engine.score(IDS)):
        with pytest.raises(SettingError, match="the router of MoE layer 1 was changed after the model was loaded"):
            call()


def test_a_router_put_back_as_it_was_is_taken_again(engine):
    expected = engine.generate(IDS, max_new_tokens=8).ids
    router(engine).top_k = 1
    with pytest.raises(SettingError):
        engine.generate(IDS, max_new_tokens=8)
    router(engine).top_k = 2
    assert engine.generate(IDS, max_new_tokens=8).ids == expected and engine.decoding == "kernels"


@pytest.mark.parametrize("change", [
    lambda gates, ids: (gates, (ids + 1) % 8),
    lambda gates, ids: (gates, ids[:, :1].expand(-1, 2).contiguous()),
    lambda gates, ids: (gates.flip(-1), ids.flip(-1)),
    lambda gates, ids: (torch.cat([gates, gates * 0.5], -1), torch.cat([ids, (ids + 1) % 8], -1)),
    lambda gates, ids: (gates[:, :1], ids[:, :1]),
], ids=["others", "one twice", "in another order", "four", "one"])
def test_experts_that_a_hook_chooses_after_the_router_are_computed_as_in_the_whole_model(checkpoint, engine, change):
    whole = eager(checkpoint("olmoe"))
    for hf in (engine.hf, whole):
        for layer in hf.model.layers:
            layer.mlp.gate.register_forward_hook(lambda router, args, out: (out[0], *change(out[1], out[2])))
    ids = whole.generate(torch.tensor([IDS]), max_new_tokens=12, do_sample=False)[0, len(IDS):].tolist()
    assert list(engine.generate(IDS, max_new_tokens=12).ids) == ids
    layers = engine._core.experts
    for here, state in zip(layers.layers, layers.states, strict=True):
        assert ((here.slot_of >= 0) == state.resident).all()


@pytest.mark.parametrize("wrong", [-1, 8])
def test_an_expert_that_there_is_not_is_refused_where_a_hook_names_it(engine, wrong):
    router(engine).register_forward_hook(lambda router, args, out: (out[0], out[1], torch.full_like(out[2], wrong)))
    for ids in (IDS, IDS[:1]):
        with pytest.raises(UnsupportedModelError, match="chose expert"):
            engine.hf(torch.tensor([ids]))
