"""Two policies as a user writes them in a cell, ten lines each: with two queues, and with a learned table."""

from __future__ import annotations

import numpy as np
import pytest
from layers import TRACES, new_layer, random_logits, softmax

import moe_lab as ml
from moe_lab.kernels.walk import walk
from moe_lab.testing import check_policy


# --- ten lines ---------------------------------------------------------------------------------------
def used(expert, weight, hit, stats, state, params, now):
    stats.own[0, expert] = now if hit else 0.0


@ml.eviction.policy(touch=used, columns=1)
def two_queues(expert, stats, state, params, now):
    """Used once: waits in the order of arrival. Used again: stays behind all of those, in the order of use."""
    if stats.own[0, expert] > 0.0:
        return now + stats.own[0, expert]
    return float(stats.arrived[expert])


# --- and ten more, and how its table is learned ------------------------------------------------------
@ml.eviction.policy(distance=ml.eviction.Table(np.arange(16.0), doc="uses to the next use, by log2 of the age"))
def by_age(expert, stats, state, params, now):
    """The expert whose next use is furthest leaves, by what a table says of its age."""
    return -params[min(15, int(np.log2(now - stats.last_use[expert] + 1.0)))]


def learn(trace: ml.Trace) -> ml.eviction.EvictionPolicy:
    total, count = np.zeros(16), np.zeros(16)
    for layer in range(trace.L):
        uses = trace.ids[:, layer].ravel()
        for expert in range(trace.experts):
            for gap in np.diff(np.nonzero(uses == expert)[0]):
                age = np.arange(1, gap + 1)
                np.add.at(total, np.minimum(15, np.log2(age + 1).astype(int)), gap - age)
                np.add.at(count, np.minimum(15, np.log2(age + 1).astype(int)), 1)
    return by_age(distance=total / np.maximum(count, 1))


@pytest.mark.parametrize("policy", [two_queues, by_age])
def test_both_keep_the_contract(policy: type[ml.eviction.EvictionPolicy]) -> None:
    assert len(check_policy(policy).checks) == 9


def hit_rates(trace: ml.Trace, *policies: object, cache: int = 4) -> list[float]:
    return [row.hit_rate for row in ml.replay(trace, eviction=list(policies), cache=cache)]


def test_two_queues_keep_what_is_used_again_from_what_is_not() -> None:
    tokens = [0, 0, 1, 1, 2, 2, *[e for i in range(30) for e in (i % 3, 3 + i)]]
    trace = ml.Trace(ids=np.array(tokens)[:, None, None], experts=40)
    lru, queues = hit_rates(trace, "lru", two_queues)
    assert queues == (30 + 3) / len(tokens)
    assert lru < queues


def test_a_table_learned_from_one_part_serves_another() -> None:
    """A loop of seven in four slots: the untaught table is nearly LRU and never hits, the taught one does."""
    loop = ml.Trace(ids=np.tile(np.arange(7), 60)[:, None, None], experts=7)
    held = ml.Trace(ids=loop.ids[210:], experts=7)
    lru, before, after = hit_rates(held, "lru", by_age, learn(ml.Trace(ids=loop.ids[:210], experts=7)))
    assert lru == before == 0
    assert after > 0.3


def test_both_run_in_a_walk_with_a_routing_policy_of_ones_own(rng: np.random.Generator) -> None:
    @ml.routing.policy(bonus=ml.Parameter(1, 0, 4, unit="logits", doc="added to residents"))
    def nudge(logits, weights, K, resident, state, params, scores):
        scores[:] = logits + np.float32(params[0]) * resident

    logits = random_logits(rng, 100, 16)
    for policy in (two_queues(), by_age()):
        plain, nudged = (walk(new_layer(16, 4, 8, nudge(bonus=b), policy), logits, softmax(logits)) for b in (0, 2))
        assert nudged.hits.mean() > plain.hits.mean()


@pytest.mark.skipif(not TRACES.exists(), reason="recorded traces are not here")
def test_both_run_on_a_recorded_trace() -> None:
    trace = ml.Trace.read(TRACES / "olmoe-299.jsonl", experts=64)
    for rate in hit_rates(trace, two_queues, learn(trace), cache=16):
        assert 0.5 < rate < 0.73
