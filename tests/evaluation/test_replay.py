"""Replay: figures against an independent one, and the table it gives back."""

from __future__ import annotations

import math
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from layers import TRACES, new_layer, random_ids, softmax

import moe_lab as ml
from moe_lab.errors import BudgetError, PolicyError, SettingError, TraceError
from moe_lab.evaluation import counting
from moe_lab.evaluation.intervals import Bootstrap
from moe_lab.eviction import LRU, AgedLFU
from moe_lab.kernels.belady import belady
from moe_lab.kernels.replay import replay_layer
from moe_lab.kernels.walk import walk


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
    assert list(frame.columns) == ["eviction", "cache", "hit_rate", "miss_rate", "bound_hit_rate", "regret", "miss_low",
                                   "miss_high", "over_lru", "over_lru_low", "over_lru_high", "loads_per_token", "share"]
    assert frame["cache"].tolist() == [4, 8, 4, 8]
    assert not frame.isna().any(axis=None)


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
    assert lines[1].split() == ["eviction", "cache", "hit_rate", "miss_rate", "bound_hit_rate", "regret"]
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
    with pytest.raises(SettingError, match="type 16, '16 slots', '50%' or 'all'"):
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


def test_regret_is_misses_over_those_of_the_bound_and_layers_add_up(trace: ml.Trace) -> None:
    found = ml.replay(trace, eviction=["lru", "lfu"], cache=[4, 8, 12])
    for row in found:
        bounds = [belady(trace.ids[:, layer], 12, row.cache) for layer in range(2)]
        misses = round(row.miss_rate * trace.uses)
        assert row.regret == pytest.approx(misses / sum(bounds)) and row.regret >= 1
        assert row.loads_per_token == pytest.approx(misses / 60)
        assert row.share == row.cache / 12
        assert np.mean([layer["miss_rate"] for layer in row.layers]) == pytest.approx(row.miss_rate)
        assert [layer["bound_hit_rate"] for layer in row.layers] == pytest.approx([1 - b / 180 for b in bounds])
    frame = found.to_frame(layers=True)
    assert list(frame.columns) == ["eviction", "cache", "layer", "hit_rate", "miss_rate", "bound_hit_rate", "regret"]
    assert len(frame) == 12


@pytest.mark.parametrize("pooled", [False, True])
def test_all_sizes_of_lru_are_those_that_a_policy_of_ones_own_finds_one_by_one(trace: ml.Trace, pooled: bool) -> None:
    @ml.eviction.policy
    def same(expert, stats, state, params, now):
        return stats.last_use[expert]

    lru, mine = (ml.replay(trace, eviction=one, cache="all", pooled=pooled).rows for one in ("lru", same))
    assert [row.cache for row in lru] == list(range(4, 25, 2) if pooled else range(3, 13))
    for a, b in zip(lru, mine, strict=True):
        assert replace(a, eviction="same", layers=()) == replace(b, layers=()) and a.layers == b.layers
        assert (b.over_lru, b.over_lru_low, b.over_lru_high) == (0, 0, 0)


def test_all_sizes_of_lru_are_settled_in_one_pass(trace: ml.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, profile = [], counting.lru_profile
    monkeypatch.setattr(counting, "lru_profile", lambda *args: calls.append(1) or profile(*args))
    monkeypatch.setattr(counting, "replay_layer", lambda *_: pytest.fail("one size at a time"))
    assert len(ml.replay(trace, eviction=["lru", LRU()], cache="all")) == 20 and len(calls) == 2     # layers


def test_intervals_hold_the_figures_and_pairing_narrows_the_difference(rng: np.random.Generator) -> None:
    ids = np.stack([random_ids(rng, 900, 3, 16) for _ in range(2)], axis=1)
    lru, lfu = ml.replay(ml.Trace(ids=ids, experts=16), eviction=["lru", "lfu"], cache=6)
    for row in (lru, lfu):
        assert row.miss_low < row.miss_rate < row.miss_high
    assert lfu.over_lru == pytest.approx(lfu.miss_rate - lru.miss_rate)
    assert lfu.over_lru_low < lfu.over_lru < lfu.over_lru_high < 0          # popularity is all there is to know
    assert lfu.over_lru_high - lfu.over_lru_low < 0.7 * (lfu.miss_high - lfu.miss_low)
    assert (lru.over_lru, lru.over_lru_low, lru.over_lru_high) == (0, 0, 0)


def test_the_window_of_the_intervals_is_a_parameter_and_one_window_tells_nothing(trace: ml.Trace) -> None:
    rows = {window: ml.replay(trace, eviction="lfu", cache=5, window=window).rows[0] for window in (1, 10, 60, 500)}
    assert len({row.miss_rate for row in rows.values()}) == 1
    assert rows[1].miss_low != rows[10].miss_low
    assert math.isnan(rows[60].miss_low) and math.isnan(rows[500].over_lru_high)
    for window in (0, 1.5, True):
        with pytest.raises(SettingError, match="must be a number of tokens"):
            ml.replay(trace, window=window)


def test_intervals_cover_the_truth_as_often_as_they_say(rng: np.random.Generator) -> None:
    covered = 0
    for i in range(400):
        wholes = rng.integers(20, 60, 12).astype(float)
        parts = wholes * 0.3 + rng.normal(0, 2, 12)
        strap = Bootstrap(12, seed=i, draws=400)
        low, high = strap.ends(strap.ratios(parts[None], wholes[None]))
        covered += low[0] <= 0.3 <= high[0]
    assert 0.91 < covered / 400 < 0.985


def test_tokens_a_second_are_predicted_by_a_disk_model(trace: ml.Trace) -> None:
    disk = ml.DiskModel("1 MB/s", expert_bytes="10 kB", compute_s="5 ms", latency_s="1 ms")
    found = ml.replay(trace, eviction=["lru", "lfu"], cache=[5, 12], disk=disk)
    for row in found:
        policy = ml.EVICTION[row.eviction]()
        hits = np.stack([replay_layer(trace.ids[:, layer], None, new_layer(12, 3, row.cache, None, policy))
                         for layer in range(2)])
        waits = (~hits).any(2).sum() / 60
        seconds = 0.005 + 0.001 * waits + row.loads_per_token * 10_000 / 1e6
        assert row.predicted_tokens_per_s == pytest.approx(1 / seconds)
    assert "tokens/s are predicted by DiskModel(1 MB/s, 1 ms, 9.77 KiB an expert, 5 ms" in repr(found)
    assert "predicted_tokens_per_s" in found.to_frame().columns
    assert math.isnan(ml.replay(trace).rows[0].predicted_tokens_per_s)
    with pytest.raises(SettingError, match="is not a disk model"):
        ml.replay(trace, disk="200 MB/s")


def test_a_disk_model_refuses_what_is_none() -> None:
    with pytest.raises(SettingError, match="above 0"):
        ml.DiskModel(0, 10, 0.1)
    with pytest.raises(SettingError, match="is not understood"):
        ml.DiskModel("200 apples", 10, 0.1)
    assert ml.DiskModel(1e6, 10, 0).tokens_per_s(0, 0) == math.inf


def test_several_traces_are_told_apart_by_name(trace: ml.Trace) -> None:
    other = ml.Trace(ids=trace.ids[:30], experts=20)
    found = ml.replay({"a": trace, "b": other}, eviction=["lru", "lfu"], cache="50%")
    assert [(row.trace, row.eviction, row.cache) for row in found] == [
        ("a", "lru", 6), ("a", "lfu", 6), ("b", "lru", 10), ("b", "lfu", 10)]
    for name, one in (("a", trace), ("b", other)):
        alone = ml.replay(one, eviction=["lru", "lfu"], cache="50%")
        assert [row.hit_rate for row in alone] == [row.hit_rate for row in found if row.trace == name]
        assert "trace" not in alone.to_frame().columns
    assert found.to_frame()["trace"].tolist() == ["a", "a", "b", "b"]
    assert "a: Trace: 60 tokens" in repr(found) and "b: Trace: 30 tokens" in repr(found)
    named = ml.Trace(ids=trace.ids, experts=12, meta={"model": "m"})
    assert [row.trace for row in ml.replay([named, named, trace])] == ["m", "m 2", "trace"]


def test_a_row_that_cannot_be_is_skipped_with_its_reason_and_the_rest_goes_on(trace: ml.Trace) -> None:
    found = ml.replay(trace, eviction=["lru", "mrs"], cache=[2, 5])
    assert [bool(row.skipped) for row in found] == [True, False, True, True]
    assert "under the floor" in found.rows[0].skipped and "needs logits" in found.rows[3].skipped
    assert math.isnan(found.rows[3].hit_rate) and found.rows[1].hit_rate > 0
    assert found.to_frame()["skipped"].tolist()[1] == ""
    assert "skipped lru, 2 slots; mrs, 2 slots: 2 slots a layer, under the floor" in repr(found)
    with pytest.raises(PolicyError, match="'mrs' needs logits"):
        ml.replay(trace, eviction="mrs", cache=5)


def test_a_policy_that_fails_on_the_way_is_skipped_too(trace: ml.Trace) -> None:
    @ml.eviction.policy
    def fragile(expert, stats, state, params, now):
        return np.nan if now > 90 else stats.last_use[expert]

    found = ml.replay(trace, eviction=["lru", fragile], cache=5)
    assert not found.rows[0].skipped and "returned NaN" in found.rows[1].skipped
    with pytest.raises(PolicyError, match="returned NaN"):
        ml.replay(trace, eviction=fragile, cache=5)


def test_two_different_policies_under_one_name_are_refused(trace: ml.Trace) -> None:
    def made(sign):
        @ml.eviction.policy(half=ml.Parameter(1, 0, 2))
        def mine(expert, stats, state, params, now):
            return sign * stats.last_use[expert]
        return mine

    one = made(1.0)
    with pytest.raises(PolicyError, match="two different eviction policies are called 'mine'"):
        ml.replay(trace, eviction=[one, made(-1.0)], cache=5)
    assert [row.eviction for row in ml.replay(trace, eviction=[one, one(half=2)], cache=5)] == ["mine", "mine(half=2)"]


def test_a_schedule_and_numbers_by_layer_are_followed(trace: ml.Trace) -> None:
    schedule = AgedLFU(half_life=ml.eviction.Schedule({0: 4, 20: 400}))
    by_layer = AgedLFU(half_life=[4, 400])
    rows = ml.replay(trace, eviction=[schedule, by_layer, AgedLFU(half_life=4), AgedLFU(half_life=400)], cache=5).rows
    layers = [[layer["hit_rate"] for layer in row.layers] for row in rows]
    assert layers[1] == [layers[2][0], layers[3][1]]
    expected = []
    for layer in range(2):
        state = new_layer(12, 3, 5, None, AgedLFU(half_life=4), layer)
        first = replay_layer(trace.ids[:20, layer], None, state)
        state.set_eviction(AgedLFU(half_life=400))
        expected.append(np.concatenate([first, replay_layer(trace.ids[20:, layer], None, state)]).mean())
    assert layers[0] == pytest.approx(expected)
    for numbers in ([4], [4, 8, 16]):
        unfit = ml.replay(trace, eviction=["lru", AgedLFU(half_life=numbers)], cache=5).rows[1]
        assert f"is given for {len(numbers)} layers, and the trace has 2 MoE layers" in unfit.skipped


def test_recorded_logits_serve_the_policies_that_look_at_them(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((50, 2, 9)) + 2 * rng.standard_normal((2, 9))
    ids = np.argsort(-logits.astype(np.float16), axis=2, kind="stable")[:, :, :2]
    trace = ml.Trace(ids=ids, logits=logits, experts=9)
    row = ml.replay(trace, eviction="mrs", cache=4).rows[0]
    walked = [walk(new_layer(9, 2, 4, None, ml.EVICTION["mrs"]()), z, softmax(z))
              for z in trace.logits.astype(np.float32).transpose(1, 0, 2)]
    assert row.hit_rate == pytest.approx(np.mean([w.hits.mean() for w in walked]))
    assert "one pool serves" in ml.replay(trace, eviction=["lru", "mrs"], cache=8, pooled=True).rows[1].skipped


# --- policies that learn ---------------------------------------------------------------------------


@pytest.fixture
def long_trace(rng: np.random.Generator) -> ml.Trace:
    return ml.Trace(ids=np.stack([random_ids(rng, 240, 2, 12) for _ in range(2)], axis=1), experts=12)


def test_a_policy_that_learns_is_judged_on_tokens_it_was_not_trained_on(long_trace: ml.Trace) -> None:
    found = ml.replay(long_trace, eviction=["lru", "learned"], cache=4, train=0.5)
    by_hand = ml.eviction.LearnedEviction.fit(long_trace[:120])
    expected = ml.replay(long_trace[120:], eviction=["lru", by_hand], cache=4)
    assert [row.hit_rate for row in found] == [row.hit_rate for row in expected]
    assert found.rows[1].seen == 0 and "120 tokens" in repr(found)
    assert re.fullmatch(r"learned\(weights=<61 numbers, [0-9a-f]{6}>\)", found.rows[1].eviction)
    again = ml.replay(long_trace[120:], eviction="learned", cache=4, train=long_trace[:120])
    assert again.rows[0].hit_rate == found.rows[1].hit_rate


def test_a_policy_that_meets_the_tokens_it_was_trained_on_is_flagged(long_trace: ml.Trace) -> None:
    trained = ml.eviction.LearnedEviction.fit(long_trace[:120])
    found = ml.replay(long_trace, eviction=["lru", trained, "learned"], cache=4)
    assert found.rows[1].seen == pytest.approx(113 / 233)
    assert (found.rows[0].seen, found.rows[2].seen) == (0, 0)
    assert "was trained on 48% of these tokens: its figures flatter it" in repr(found)
    assert "seen" in found.to_frame().columns
    assert pickle.loads(pickle.dumps(trained)).seen(long_trace) == found.rows[1].seen


@pytest.mark.parametrize("train", [0, 1, 1.5, True, "half"])
def test_a_share_to_train_on_that_is_none_is_refused(train: object, long_trace: ml.Trace) -> None:
    with pytest.raises(SettingError, match="must be a share of each trace between 0 and 1"):
        ml.replay(long_trace, eviction="learned", train=train)


def test_nothing_to_replay_is_an_error(trace: ml.Trace) -> None:
    with pytest.raises(TraceError, match="holds no expert use"):
        ml.replay(trace.prefill)
    with pytest.raises(SettingError, match="at least one"):
        ml.replay(trace, eviction=[])
    with pytest.raises(TraceError, match="at least one trace"):
        ml.replay([])
    with pytest.raises(TraceError, match="takes a Trace"):
        ml.replay("olmoe.jsonl")


def test_a_short_replay_shows_no_bar(trace: ml.Trace, capsys: pytest.CaptureFixture) -> None:
    ml.replay(trace, cache=5)
    assert capsys.readouterr().err == ""
