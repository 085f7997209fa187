"""Replay: figures against an independent one, and the table it gives back."""

from __future__ import annotations

import numpy as np
import pytest
from layers import TRACES, random_ids

import moe_lab as ml
from moe_lab.errors import BudgetError, PolicyError, SettingError, TraceError
from moe_lab.eviction import LRU, AgedLFU
from moe_lab.kernels.belady import belady


@pytest.fixture
def trace(rng: np.random.Generator) -> ml.Trace:
    return ml.Trace(ids=np.stack([random_ids(rng, 60, 3, 12) for _ in range(2)], axis=1), experts=12)


# shared/traces/README.md: hit rates in percent of an independent replay
REFERENCE = [("olmoe-299.jsonl", 16, 57.6, 59.7, 59.9, 72.3), ("olmoe-299.jsonl", 32, 76.5, 79.4, 80.6, 89.9),
             ("qwen3-30b-a3b.route.csv", 12, 50.2, 51.8, 56.8, 66.7),
             ("qwen3-30b-a3b.route.csv", 24, 68.4, 72.2, 75.0, 83.6)]


@pytest.mark.skipif(not TRACES.is_dir(), reason=f"no recorded traces in {TRACES}")
@pytest.mark.parametrize(("name", "slots", "fifo", "lru", "lfu", "bound"), REFERENCE)
def test_replay_agrees_with_the_reference_figures(name: str, slots: int, fifo: float, lru: float, lfu: float,
                                                  bound: float) -> None:
    rows = ml.replay(ml.Trace.read(TRACES / name).decode, eviction=["fifo", "lru", "lfu"], cache=slots).rows
    assert [100 * row.hit_rate for row in rows] == pytest.approx([fifo, lru, lfu], abs=0.1)
    assert [100 * row.bound_hit_rate for row in rows] == pytest.approx([bound] * 3, abs=0.1)


@pytest.mark.skipif(not TRACES.is_dir(), reason=f"no recorded traces in {TRACES}")
@pytest.mark.parametrize(("name", "slots", "gain"), [
    ("olmoe-299.jsonl", 16, 0.02), ("qwen3-30b-a3b.route.csv", 12, 0.04)])
def test_aged_lfu_beats_lru_on_real_traces(name: str, slots: int, gain: float) -> None:
    lru, aged = ml.replay(ml.Trace.read(TRACES / name).decode, eviction=["lru", "aged-lfu"], cache=slots)
    assert aged.hit_rate - lru.hit_rate >= gain


def test_every_policy_at_every_size_is_a_row(trace: ml.Trace) -> None:
    found = ml.replay(trace, eviction=["lru", "lfu"], cache=[4, "50%", "8 slots"])
    assert [(row.eviction, row.cache) for row in found] == [("lru", 4), ("lru", 6), ("lru", 8), ("lfu", 4), ("lfu", 6),
                                                            ("lfu", 8)]
    assert len(found) == 6
    for row in found:
        assert row.hit_rate + row.miss_rate == pytest.approx(1)
        assert row.hit_rate <= row.bound_hit_rate
        misses = sum(belady(trace.ids[:, layer], 12, row.cache) for layer in range(2))
        assert row.bound_hit_rate == pytest.approx(1 - misses / trace.uses)


def test_the_frame_has_the_documented_columns(trace: ml.Trace) -> None:
    frame = ml.replay(trace, eviction=["lru", "fifo"], cache=[4, 8]).to_frame()
    assert list(frame.columns) == ["eviction", "cache", "hit_rate", "miss_rate", "bound_hit_rate"]
    assert frame.shape == (4, 5)
    assert frame["cache"].tolist() == [4, 8, 4, 8]


def test_a_name_a_class_and_an_instance_give_the_same_row(trace: ml.Trace) -> None:
    rows = ml.replay(trace, eviction=["lru", LRU, LRU()], cache=5).rows
    assert rows[0] == rows[1] == rows[2]


def test_rows_of_one_policy_tell_their_parameters_apart(trace: ml.Trace) -> None:
    rows = ml.replay(trace, eviction=[AgedLFU(), AgedLFU(half_life=8)], cache=5).rows
    assert [row.eviction for row in rows] == ["aged-lfu", "aged-lfu(half_life=8)"]


def test_a_policy_of_ones_own_is_replayed(trace: ml.Trace) -> None:
    @ml.eviction.policy
    def same_as_lru(expert, stats, state, params, now):
        return stats.last_use[expert]

    mine, lru = ml.replay(trace, eviction=[same_as_lru, "lru"], cache=5)
    assert (mine.eviction, mine.hit_rate) == ("same-as-lru", lru.hit_rate)


def test_random_eviction_follows_the_seed(trace: ml.Trace) -> None:
    rates = [ml.replay(trace, eviction="random", cache=5, seed=seed).rows[0].hit_rate for seed in (1, 1, 2)]
    assert rates[0] == rates[1] != rates[2]


def test_a_table_is_printed(trace: ml.Trace) -> None:
    lines = repr(ml.replay(trace, eviction="lru", cache=[4, 12])).splitlines()
    assert lines[0].startswith("replay of Trace: 60 tokens")
    assert lines[1].split() == ["eviction", "cache", "hit_rate", "miss_rate", "bound_hit_rate"]
    assert lines[2].split()[:2] == ["lru", "4"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_more_slots_than_experts_are_all_of_them(trace: ml.Trace) -> None:
    assert ml.replay(trace, cache=[12, 500]).rows[1].cache == 12


def test_a_cache_under_the_floor_is_refused_with_the_arithmetic(trace: ml.Trace) -> None:
    for cache in (2, "10%", "2 slots", 0):
        with pytest.raises(BudgetError, match=r"slots a layer, under the floor: one token uses 3 of 12 experts at once "
                                              r"in each of 2 layers; type cache=3 or more"):
            ml.replay(trace, cache=cache)


@pytest.mark.parametrize("cache", ["6 GiB", "half", None, 4.5, True])
def test_a_cache_that_is_no_number_of_slots_is_refused(cache: object, trace: ml.Trace) -> None:
    with pytest.raises(SettingError, match="type 16, '16 slots' or '50%'"):
        ml.replay(trace, cache=cache)


def test_an_unknown_policy_is_refused_before_the_work(trace: ml.Trace) -> None:
    with pytest.raises(PolicyError, match="known are 'lru'"):
        ml.replay(trace, eviction=["fifo", "lruu"], cache=5)


def test_a_policy_that_needs_what_the_trace_lacks_is_refused(trace: ml.Trace) -> None:
    def weigh(expert, weight, hit, stats, state, params, now):
        stats.own[0, expert] += weight

    @ml.eviction.policy(touch=weigh, columns=1, needs=["weights"])
    def by_weight(expert, stats, state, params, now):
        return stats.own[0, expert]

    with pytest.raises(PolicyError, match="'by-weight' needs weights"):
        ml.replay(trace, eviction=by_weight, cache=5)
    weighted = ml.Trace(ids=trace.ids, weights=np.ones(trace.ids.shape), experts=12)
    assert ml.replay(weighted, eviction=by_weight, cache=5).rows[0].hit_rate > 0


def test_nothing_to_replay_is_an_error(trace: ml.Trace) -> None:
    with pytest.raises(TraceError, match="holds no expert use"):
        ml.replay(trace.prefill)
    with pytest.raises(SettingError, match="at least one"):
        ml.replay(trace, eviction=[])
    with pytest.raises(TraceError, match="takes a Trace"):
        ml.replay("olmoe.jsonl")


def test_a_short_replay_shows_no_bar(trace: ml.Trace, capsys: pytest.CaptureFixture) -> None:
    ml.replay(trace, cache=5)
    assert capsys.readouterr().err == ""
