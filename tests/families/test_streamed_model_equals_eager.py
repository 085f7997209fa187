"""For each family: the streamed model, its experts read from disk, against transformers' own eager model."""

from __future__ import annotations

import pytest
import torch
from checkpoints import FAMILIES, KernelHandler, TorchHandler, eager

from moe_lab.kernels.formats import FORMATS
from moe_lab.models import open_model

IDS = torch.arange(40)[None] * 37 % 160
TOLERANCE = 1e-5
"""Of the largest logit, in float32."""


def opened(folder, handler=TorchHandler, format="f32", dtype=torch.float32):
    model = open_model(folder, dtype)
    model.connect(handler(model, FORMATS[format]))
    return model


def prefill_and_decode(model) -> torch.Tensor:
    """Logits of 30 tokens at once and of 10 more one by one."""
    with torch.no_grad():
        first = model(input_ids=IDS[:, :30], use_cache=True)
        logits, past = [first.logits], first.past_key_values
        for t in range(30, 40):
            step = model(input_ids=IDS[:, t : t + 1], past_key_values=past, use_cache=True)
            logits.append(step.logits)
    return torch.cat(logits, 1)


def assert_equal_logits(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.std() > 0.1, "logits that hardly differ prove nothing"
    assert (mine - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


@pytest.mark.parametrize("handler", [TorchHandler, KernelHandler])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_eager_model(checkpoint, family, handler):
    folder = checkpoint(family)
    assert_equal_logits(prefill_and_decode(opened(folder, handler).hf), prefill_and_decode(eager(folder)))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_equals_the_eager_model(checkpoint, family):
    folder = checkpoint(family)
    ask = dict(input_ids=IDS[:, :12], max_new_tokens=20, do_sample=False, attention_mask=torch.ones(1, 12))
    mine, theirs = opened(folder).hf.generate(**ask), eager(folder).generate(**ask)
    assert mine.shape == (1, 32)
    assert torch.equal(mine, theirs)


def test_a_batch_equals_the_eager_model(checkpoint):
    folder = checkpoint("olmoe")
    batch = torch.cat([IDS, IDS.flip(1)])
    with torch.no_grad():
        assert_equal_logits(opened(folder).hf(input_ids=batch).logits, eager(folder)(input_ids=batch).logits)


def test_a_sharded_checkpoint_equals_one_file(checkpoint):
    whole, sharded = checkpoint("olmoe"), checkpoint("olmoe", shard="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 4
    assert_equal_logits(prefill_and_decode(opened(sharded).hf), prefill_and_decode(eager(whole)))


def test_a_bfloat16_checkpoint_in_float32_is_exact(checkpoint):
    folder = checkpoint("qwen2-moe", dtype=torch.bfloat16)
    reference = prefill_and_decode(eager(folder))
    assert_equal_logits(prefill_and_decode(opened(folder, KernelHandler).hf), reference)
    assert_equal_logits(prefill_and_decode(opened(folder, KernelHandler, "bf16").hf), reference)


def test_a_float16_checkpoint_is_opened_in_float32_and_is_exact(checkpoint):
    folder = checkpoint("olmoe", dtype=torch.float16)
    model = open_model(folder)
    assert model.spec.dtype == "f32"
    model.connect(KernelHandler(model, FORMATS["f32"]))
    assert_equal_logits(prefill_and_decode(model.hf), prefill_and_decode(eager(folder)))


def test_bfloat16_is_as_close_to_float32_as_the_implementations_of_transformers_are(checkpoint):
    folder = checkpoint("olmoe", dtype=torch.bfloat16)
    model = open_model(folder)
    assert model.hf.dtype == torch.bfloat16
    model.connect(KernelHandler(model, FORMATS["bf16"]))
    exact = prefill_and_decode(eager(folder))

    def error(hf) -> float:
        return float((prefill_and_decode(hf).float() - exact).pow(2).mean().sqrt())

    theirs = [error(eager(folder, torch.bfloat16, kind)) for kind in ("eager", "grouped_mm")]
    assert 0 < error(model.hf) <= 1.1 * max(theirs)


def test_the_handler_may_keep_the_routers_own_choice(checkpoint):
    folder = checkpoint("mixtral")
    model = open_model(folder, torch.float32)
    handler = TorchHandler(model, FORMATS["f32"], route=False)
    model.connect(handler)
    assert_equal_logits(prefill_and_decode(model.hf), prefill_and_decode(eager(folder)))
    assert handler.routed == 3 * 11


def test_the_handlers_choice_is_what_the_experts_get(checkpoint):
    model = open_model(checkpoint("olmoe"), torch.float32)
    seen = []

    class Stubborn(TorchHandler):
        def route(self, layer, logits):
            T = logits.shape[0]
            return torch.tensor([[3, 5]]).expand(T, 2), torch.tensor([[0.75, 0.25]]).expand(T, 2)

        def compute(self, layer, x, ids, weights):
            seen.append((layer, ids[0].tolist(), weights[0].tolist()))
            return super().compute(layer, x, ids, weights)

    model.connect(Stubborn(model, FORMATS["f32"]))
    model.hf(input_ids=IDS)
    assert seen == [(layer, [3, 5], [0.75, 0.25]) for layer in range(3)]


def test_a_family_without_a_rule_runs_with_its_own_routing(checkpoint):
    folder = checkpoint("granite")
    model = opened(folder)
    assert model.rules is None
    assert "off" in model.spec.routing
    assert "granitemoe" in model.spec.routing
    assert_equal_logits(prefill_and_decode(model.hf), prefill_and_decode(eager(folder)))


def test_router_logits_are_still_recorded(checkpoint):
    folder = checkpoint("olmoe")
    with torch.no_grad():
        mine = opened(folder).hf(input_ids=IDS, output_router_logits=True).router_logits
        theirs = eager(folder)(input_ids=IDS, output_router_logits=True).router_logits
    assert len(mine) == len(theirs) == 3
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
