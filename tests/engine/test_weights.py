"""Engines over quantised experts: what they say of themselves, what they count, what they cost in quality."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moe_lab as ml
from moe_lab import pocket
from moe_lab.engine import grouped
from moe_lab.errors import BudgetError, SettingError
from moe_lab.kernels import instructions

PROMPT = [5, 17, 3, 90, 41]
CUT = 4_000
"""Characters of held-out text that a score takes here."""


@pytest.fixture(params=["q8", "q4"])
def name(request):
    return request.param


@pytest.fixture
def engine(checkpoint, name):
    made = ml.load(str(checkpoint("olmoe")), cache=4, weights=name)
    yield made
    made.close()


def test_an_engine_says_its_format_and_that_it_is_lossy(engine, name):
    assert not engine.exact and not engine.generate(PROMPT, max_new_tokens=3).stats.exact
    assert name in repr(engine) and "lossy" in repr(engine)
    assert f"kernels   {instructions.chosen()}, 1 thread (the experts are small)" in repr(engine)


def test_bytes_read_are_the_files_and_bytes_touched_the_slots(engine, name):
    size, in_file = engine.spec.expert_bytes[name], 3 * 64 * 48 * 4
    steps = list(engine.stream(PROMPT, max_new_tokens=20))[1:]
    first_miss = next(step for step in steps if step.misses)
    for step in steps:
        assert step.read_bytes == step.misses * in_file
        assert step.touched_bytes == engine._core.dense_bytes + 3 * 2 * size
    assert engine.miss_bytes == in_file
    assert any("one read of 36.0 KiB" in line for line in engine.explain(first_miss))


def test_slots_hold_what_the_file_quantises_to(engine, name):
    list(engine.stream(PROMPT, max_new_tokens=9))
    cache, expected = engine._core.experts, np.empty(engine._core.experts.slot_bytes, np.uint8)
    for layer, (here, state) in enumerate(zip(cache.layers, cache.states, strict=True)):
        for expert in np.nonzero(state.resident)[0]:
            cache.readers.store.read(layer, int(expert), expected)
            np.testing.assert_array_equal(here.arena[here.slot_of[expert]], expected)


def test_a_budget_in_bytes_buys_slots_of_the_format(checkpoint, name):
    folder = str(checkpoint("olmoe"))
    size = ml.info(folder).expert_bytes[name]
    engine = ml.load(folder, weights=name, cache=f"{3 * 5 * size} B")
    assert engine.cache.slots == 5 and engine.cache.nbytes == 3 * 5 * size
    with pytest.raises(BudgetError, match=f"2 x 3 x {size:,} bytes"):
        ml.load(folder, weights=name, cache=1)


def test_a_score_goes_through_the_quantised_experts(checkpoint, engine):
    exact = ml.load(str(checkpoint("olmoe")), cache="100%")
    mine, other = (e.score(list(range(100, 160)) * 2, window=40).loss for e in (engine, exact))
    assert mine != other and abs(mine - other) < 0.2 * other


def test_the_same_tokens_whatever_is_resident(checkpoint, name):
    engines = [ml.load(str(checkpoint("olmoe")), weights=name, cache=slots) for slots in (2, 5, 8)]
    assert len({engine.generate(PROMPT, max_new_tokens=16).ids for engine in engines}) == 1


@pytest.mark.parametrize("cache", [2, 5, 8])
def test_a_prompt_at_once_gives_the_logits_of_one_token_after_the_other(checkpoint, name, cache):
    """But where attention, whose sums torch orders otherwise, leaves a number so near the middle of two bytes that it
    becomes the other one."""
    engine, x = ml.load(str(checkpoint("olmoe")), weights=name, cache=cache), torch.arange(40)[None] * 37 % 160
    with torch.no_grad():
        whole, past = engine.hf(input_ids=x).logits[0], engine.new_past()
        steps = [engine.hf(input_ids=x[:, t : t + 1], past_key_values=past).logits[0] for t in range(40)]
    differing = (whole - torch.cat(steps)).abs().amax(-1) / whole.abs().max()
    assert differing.max() < 0.1 and (differing < 1e-5).float().mean() > 0.4
    assert differing[0] < 1e-6


@pytest.mark.parametrize("weights", ["f32", "q8"])
@pytest.mark.parametrize("cache", [3, 8])
def test_a_prompt_in_chunks_gives_the_bits_of_one_at_once_and_true_residents(checkpoint, monkeypatch, weights, cache):
    x, folder = torch.arange(200)[None] * 37 % 160, str(checkpoint("olmoe"))
    found = []
    for size in (grouped.CHUNK_BYTES, 1):                   # 200 tokens at once, or 64 of them
        monkeypatch.setattr(grouped, "CHUNK_BYTES", size)
        engine = ml.load(folder, weights=weights, cache=cache)
        with torch.no_grad():
            found.append(engine.hf(input_ids=x).logits)
        for here, state in zip(engine._core.experts.layers, engine._core.experts.states, strict=True):
            np.testing.assert_array_equal(here.slot_of >= 0, state.resident)
    if weights == "f32":                                    # a matrix product may sum in another order for other sizes
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(*found)


@pytest.mark.parametrize("world", ["python", "prose"])
def test_the_pocket_models_perplexity_stays_within_the_promise(world, record_property):
    text = pocket.held_out(world)[:CUT]
    found = {weights: ml.load("pocket", weights=weights).score(text).perplexity for weights in ("bf16", "q8", "q4")}
    increase = {weights: value / found["bf16"] - 1 for weights, value in found.items()}
    record_property("increase", increase)
    assert abs(increase["q8"]) < 0.002 and abs(increase["q4"]) < 0.03


def test_a_path_that_this_processor_lacks_is_refused_before_anything_is_read(monkeypatch):
    lacking = next(path for path in instructions.NEEDS if path not in instructions.possible())
    monkeypatch.setenv(instructions.VARIABLE, lacking)
    with pytest.raises(SettingError, match=f"MOE_LAB_KERNELS='{lacking}'.*it can run .*portable"):
        ml.load("pocket", weights="q8")
