"""The engine against plain transformers, and against itself in pieces: what "exact" means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, eager

import moe_lab as ml
from moe_lab.errors import SettingError

IDS = (np.arange(60) * 37 % 160).tolist()
TOLERANCE = 1e-5
"""Of the largest logit, in float32."""

POLICIES = [
    ml.routing.Original(),
    ml.routing.CachePrior(penalty=0.2, keep_top=1),
    ml.routing.CachePrior(penalty=1.0, keep_top=0),
    ml.routing.MaxRank(window=5, keep_top=1),
    ml.routing.CumulativeThreshold(mass=0.7, keep_top=1),
    ml.routing.CachePrior(penalty=ml.routing.Schedule({0: 0, 12: 0.5, 30: 0, 40: 1.5})),
]
EVICTIONS = ["lru", "fifo", "lfu", "aged-lfu", "random"]


def passes(hf, prompt: int = 30, cached: bool = True) -> torch.Tensor:
    """Logits (60, V) of a prompt at once and of the rest token by token, or of growing texts without a cache."""
    x = torch.tensor([IDS])
    with torch.no_grad():
        if not cached:
            return torch.cat([hf(input_ids=x[:, : t + 1], use_cache=False).logits[0, -1:] for t in range(0, 60, 7)])
        out = hf(input_ids=x[:, :prompt], use_cache=True)
        logits, past = [out.logits[0]], out.past_key_values
        for t in range(prompt, 60):
            logits.append(hf(input_ids=x[:, t : t + 1], past_key_values=past, use_cache=True).logits[0])
    return torch.cat(logits)


def assert_equal(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.std() > 0.1, "logits that hardly differ prove nothing"
    assert (mine - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("cache", ["100%", "50%", 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_eager_model_whatever_fits(checkpoint, family, cache, cached):
    folder = checkpoint(family)
    assert_equal(passes(ml.load(str(folder), cache=cache).hf, cached=cached), passes(eager(folder), cached=cached))


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_eviction_changes_nothing_under_original_routing(checkpoint, eviction):
    folder = checkpoint("olmoe")
    assert_equal(passes(ml.load(str(folder), cache=3, eviction=eviction).hf), passes(eager(folder)))


@pytest.mark.parametrize("family", FAMILIES)
def test_stream_and_generate_give_the_greedy_ids_of_transformers(checkpoint, family):
    folder = checkpoint(family)
    engine = ml.load(str(folder), cache="50%")
    x = torch.tensor([IDS[:12]])
    theirs = eager(folder).generate(input_ids=x, attention_mask=torch.ones_like(x), max_new_tokens=24, do_sample=False)
    expected = tuple(theirs[0, 12:].tolist())
    assert engine.generate(IDS[:12], max_new_tokens=24).ids == expected
    mine = engine.hf.generate(input_ids=x, attention_mask=torch.ones_like(x), max_new_tokens=24, do_sample=False)
    assert tuple(mine[0, 12:].tolist()) == expected


def test_bfloat16_is_as_close_to_float32_as_transformers_own_ways_are(checkpoint):
    folder = checkpoint("olmoe", dtype=torch.bfloat16)
    truth = passes(eager(folder, torch.float32))
    def error(model) -> float:
        return float((passes(model).float() - truth).abs().mean())
    theirs = [error(eager(folder, torch.bfloat16, way)) for way in ("eager", "grouped_mm")]
    assert error(ml.load(str(folder), cache="50%").hf) <= 1.5 * max(theirs)


@pytest.mark.parametrize("eviction", EVICTIONS)
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_score_routes_as_feeding_token_by_token_does(checkpoint, policy, eviction):
    engine = ml.load(str(checkpoint("olmoe")), cache=4, routing=policy, eviction=eviction)
    score = engine.score(IDS, window=59)
    passes(engine.hf, prompt=1)
    one_by_one = engine.trace
    assert np.array_equal(score.trace.ids, one_by_one.ids[:59])
    assert score.stats.prefill.misses > 0
    np.testing.assert_allclose(score.trace.weights, one_by_one.weights[:59], atol=1e-5)


def test_in_bfloat16_the_share_of_differing_routes_is_small(checkpoint, record_property):
    engine = ml.load(str(checkpoint("olmoe", dtype=torch.bfloat16)), cache=4, routing="cache-prior")
    score = engine.score(IDS, window=59)
    passes(engine.hf, prompt=1)
    differing = float(np.mean(np.sort(score.trace.ids, -1) != np.sort(engine.trace.ids[:59], -1)))
    record_property("differing_routes", differing)
    assert differing < 0.2


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_chunks_of_any_length_route_alike_and_have_one_digest(checkpoint, policy):
    folder, digests = str(checkpoint("qwen2-moe")), set()
    for prompt in (1, 17, 45, 60):
        engine = ml.load(folder, cache=4, routing=policy)
        passes(engine.hf, prompt=prompt)
        digests.add(engine.stats.digest)
    assert len(digests) == 1
    assert engine.trace.digest() == digests.pop()


def test_two_runs_of_one_setting_have_one_digest_and_another_setting_has_another(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache=4)
    digests = []
    for penalty in (0.0, 0.0, 0.9):
        engine.cache.reset()
        engine.routing = ml.routing.CachePrior(penalty=penalty)
        digests.append(engine.generate(IDS[:9], max_new_tokens=30).stats.digest)
    assert digests[0] == digests[1] != digests[2]


def test_with_every_expert_resident_cache_prior_is_the_original(checkpoint):
    folder = str(checkpoint("olmoe"))
    one = ml.load(folder, cache="100%").generate(IDS[:9], max_new_tokens=30)
    prior = ml.load(folder, cache="100%", routing=ml.routing.CachePrior(penalty=0.7))
    other = prior.generate(IDS[:9], max_new_tokens=30)
    assert one.ids == other.ids and one.stats.digest == other.stats.digest and other.stats.miss_rate == 0


def test_a_family_without_a_rule_routes_by_itself_and_its_residency_follows(checkpoint):
    folder = checkpoint("granite")
    engine = ml.load(str(folder), cache=3)
    assert not engine.routes
    assert_equal(passes(engine.hf), passes(eager(folder)))
    one_by_one = engine.trace
    score = engine.score(IDS, window=59)
    assert np.array_equal(np.sort(score.trace.ids, -1), np.sort(one_by_one.ids[:59], -1))
    assert 0 < score.stats.prefill.misses < score.stats.prefill.uses
    with pytest.raises(SettingError, match="routing policies are off"):
        engine.routing = "cache-prior"
