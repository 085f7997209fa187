"""Router rules: what they compute, and that a wrong one is found out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES

from moe_lab.models import rules
from moe_lab.models.find import find_blocks, read_config, skeleton
from moe_lab.models.rules import RULES, RouterRule, disagreement, find_rules


def routers(folder):
    config = read_config(folder, "it")
    model = skeleton(config, "it")
    return config, [model.get_submodule(b.router) for b in find_blocks(model, "it")]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_familys_rule_agrees_with_its_router(checkpoint, family):
    config, found = routers(checkpoint(family))
    assert found
    rule = RULES[config.model_type](config)
    assert find_rules(config, found, 2) == ([rule] * len(found), rule.words(2))


@pytest.mark.parametrize("wrong", [
    dict(renormalise=True), dict(score="sigmoid"), dict(scale=1.5), dict(scale=1.001),
])
def test_a_wrong_rule_is_found_out(checkpoint, wrong):
    config, found = routers(checkpoint("olmoe"))
    rule = dataclasses.replace(RULES["olmoe"](config), **wrong)
    assert "differ" in disagreement(rule, found[0], 2)


def test_a_wrong_number_of_experts_is_found_out(checkpoint):
    config, found = routers(checkpoint("olmoe"))
    assert "does not return" in disagreement(RULES["olmoe"](config), found[0], 3)


def test_a_wrong_row_switches_routing_policies_off(checkpoint, monkeypatch):
    from moe_lab.models import open_model

    monkeypatch.setitem(rules.RULES, "olmoe", lambda config: RouterRule("softmax", renormalise=True))
    model = open_model(checkpoint("olmoe"))
    assert model.rules is None
    assert "routing policies are off, because its router's weights differ from the rule's" in model.spec.routing


def test_a_router_that_chooses_otherwise_is_found_out():
    class Worst(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(8, 16))

        def forward(self, x):
            logits = x @ self.weight.T
            w, ids = logits.softmax(-1).topk(2, largest=False)
            return logits, w, ids

    assert "does not choose by the largest" in disagreement(RouterRule("softmax", False), Worst(), 2)


def test_a_router_that_fails_or_hides_its_logits_is_found_out():
    class Silent(torch.nn.Linear):
        pass

    class Broken(torch.nn.Linear):
        def forward(self, x):
            raise RuntimeError("not today")

    rule = RouterRule("softmax", False)
    assert "does not return logits, weights and ids" in disagreement(rule, Silent(16, 8), 2)
    assert "not today" in disagreement(rule, Broken(16, 8), 2)


def test_checking_a_rule_leaves_torchs_random_numbers_alone(checkpoint):
    config, found = routers(checkpoint("olmoe"))
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    disagreement(RULES["olmoe"](config), found[0], 2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_weights_are_those_of_the_formula(rng):
    logits = rng.standard_normal((5, 8)).astype(np.float32) * 3
    z = torch.from_numpy(logits)
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    sigmoid = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(RouterRule("softmax", False).weights(z), e / e.sum(-1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(RouterRule("sigmoid", False).weights(z), sigmoid, rtol=1e-6)
    assert RouterRule("softmax", False).weights(z.bfloat16()).dtype == torch.float32


def test_renormalising_divides_by_the_used_experts_only():
    gates = np.array([[0.5, 0.25, 0.125], [0.4, 0.1, 0.0]], np.float32)
    ids = np.array([[3, 1, 2], [0, 5, -1]])
    finished = RouterRule("softmax", renormalise=True, scale=2.0).finish(gates, ids)
    np.testing.assert_allclose(finished, [[8 / 7, 4 / 7, 2 / 7], [1.6, 0.4, 0.0]], rtol=1e-6)
    assert finished.dtype == np.float32
    assert RouterRule("softmax", renormalise=False).finish(gates, ids) is gates
