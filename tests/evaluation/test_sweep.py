"""A sweep agrees with the engine's own scores, survives interruption, and is read where it was measured before."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.engine import passes as passing
from moe_lab.errors import BudgetError, PolicyError, SettingError
from moe_lab.evaluation import measure as measuring
from moe_lab.evaluation.intervals import paired, student
from moe_lab.kernels.belady import belady
from moe_lab.kernels.policy_code import code_of

WINDOW = 40
ROUTING = ["original", ml.routing.CachePrior(penalty=0.3), ml.routing.MaxRank(window=4)]


@pytest.fixture
def ids(rng):
    return rng.integers(0, 160, 3 * WINDOW + 11).tolist()


@pytest.fixture
def passes(engine, monkeypatch):
    """Counts the forward passes of engines."""
    counted, one_pass = [], passing.one_pass

    def one(*args):
        counted.append(1)
        return one_pass(*args)

    monkeypatch.setattr(passing, "one_pass", one)
    return counted


def test_points_are_what_the_engine_scores(engine, ids, tmp_path):
    done = ml.sweep(engine, ids, routing=ROUTING, eviction=["lru", "lfu"], cache=[3, "50%"], window=WINDOW,
                    store=tmp_path).finish()
    assert len(done.points) == 12 and not done.skipped
    for point in done.points:
        engine.routing, engine.eviction = point.setting.routing, point.setting.eviction
        engine.cache.resize(point.cache)
        score = engine.score(ids, window=WINDOW)
        assert point.digest == score.stats.digest == score.trace.digest()
        assert point.perplexity == pytest.approx(score.perplexity, rel=1e-12)
        assert point.window_losses == pytest.approx(score.window_losses, rel=1e-12)
        for name in ("hit_rate", "miss_rate", "swapped_share", "mass_kept"):
            assert getattr(point, name) == pytest.approx(getattr(score.stats, name), abs=1e-7), name
        starts = range(0, len(ids) - 1, WINDOW)
        routes = [score.trace.ids[at : at + WINDOW, layer] for at in starts for layer in range(3)]
        best = sum(belady(part, 8, point.cache) for part in routes)
        assert point.bound_hit_rate == pytest.approx(1 - best / score.trace.uses)
        assert point.regret == pytest.approx(score.stats.prefill.misses / best) and point.regret >= 1


def test_the_original_routing_takes_one_pass_for_all_its_points(engine, ids, passes, tmp_path):
    frame = ml.sweep(engine, ids, routing="original", eviction=["lru", "fifo", "lfu"], cache=[2, 4, 8], window=WINDOW,
                     store=tmp_path).to_frame()
    assert len(passes) == 4 and len(frame) == 9
    assert (frame[["increase", "kl", "swapped_share"]] == 0).all(axis=None)
    assert (frame[["agreement", "mass_kept"]] == 1).all(axis=None)


def test_the_live_engine_stays_as_it_was(engine, ids, tmp_path):
    list(engine.stream([3, 4, 5], max_new_tokens=3))
    before = engine.cache.resident, engine.routing, engine.eviction, engine.cache.slots, engine.trace.digest()
    ml.sweep(engine, ids, routing=ROUTING, cache=[2, 6], window=WINDOW, store=tmp_path).finish()
    after = engine.cache.resident, engine.routing, engine.eviction, engine.cache.slots, engine.trace.digest()
    assert (before[0] == after[0]).all() and before[1:] == after[1:]


def test_kl_and_agreement_are_those_of_the_whole_distribution(engine, ids, tmp_path):
    import torch

    point = ml.sweep(engine, ids, routing=ROUTING[1], cache=3, window=WINDOW, store=tmp_path).finish().points[0]

    def logits(policy):
        from moe_lab.engine.score import windows

        with engine.fresh_state(policy, slots=3):
            return torch.cat([x.double() for x, _ in windows(engine, ids, WINDOW, fresh=True)])

    p, q = logits(ml.routing.Original()).log_softmax(-1), logits(ROUTING[1]).log_softmax(-1)
    assert point.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4) and point.kl > 1e-4
    assert point.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


def test_logits_beyond_the_scratch_file_are_run_again_and_give_the_same(engine, ids, passes, monkeypatch, tmp_path):
    arguments = dict(routing=ROUTING[1], cache=3, window=WINDOW, store=False)
    kept = ml.sweep(engine, ids, **arguments).finish().points[0]
    count = len(passes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 60_000))
    again = ml.sweep(engine, ids, **arguments).finish().points[0]
    assert (again.kl, again.agreement) == (kept.kl, kept.agreement)
    assert count == 8 and len(passes) - count == 8 + 3      # one window of 40 x 160 x 4 bytes fits into 30,000


def test_an_interrupted_sweep_goes_on_where_it_was(engine, ids, passes, tmp_path):
    arguments = dict(routing=ROUTING, cache=[3, 4], window=WINDOW, store=tmp_path)
    whole = ml.sweep(engine, ids, **{**arguments, "store": False}).to_frame()
    started = iter(ml.sweep(engine, ids, **arguments))
    first = [next(started) for _ in range(4)]
    started.close()
    passes.clear()
    resumed = ml.sweep(engine, ids, **arguments)
    frame = resumed.to_frame()
    assert len(passes) == 3 * 4             # the reference's logits once more, and the two points that were missing
    assert list(resumed.points[:4]) == first
    assert frame.equals(whole)


def test_a_point_cut_off_in_the_middle_leaves_nothing_half_done(engine, ids, monkeypatch, tmp_path):
    arguments = dict(routing=ROUTING[:2], cache=3, window=WINDOW, store=tmp_path)
    compare, calls = measuring.compare, []

    def cut(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compare(*args)

    monkeypatch.setattr(measuring, "compare", cut)
    sweep = ml.sweep(engine, ids, **arguments)
    with pytest.raises(KeyboardInterrupt):
        sweep.finish()
    assert len(sweep.points) == 1 and not list(tmp_path.rglob("*.part"))
    assert len(sweep.finish().points) == 2
    assert not engine.busy and len(list(engine.stream([1, 2], max_new_tokens=2))) == 2


def test_a_repeated_sweep_is_read_without_a_pass(engine, ids, passes, checkpoint, tmp_path):
    arguments = dict(routing=ROUTING, eviction=["lru", "lfu"], cache=[3, 4], window=WINDOW, store=tmp_path)
    first = ml.sweep(engine, ids, **arguments).to_frame()
    passes.clear()
    assert ml.sweep(engine, ids, **arguments).to_frame().equals(first)
    other = ml.load(str(checkpoint("olmoe")), cache=2, routing="cache-prior")       # another engine, the same weights
    assert ml.sweep(other, ids, **arguments).to_frame().equals(first)
    other.close()
    assert not passes


@pytest.mark.parametrize("change", [dict(window=WINDOW - 1), dict(text=1), dict(weights="bf16"), dict(model=1),
                                    dict(seed=5)])
def test_another_text_window_model_format_or_seed_is_measured_anew(checkpoint, ids, change, tmp_path):
    def keys(model="olmoe", weights=None, seed=0, **more):
        engine = ml.load(str(checkpoint("olmoe", seed=model) if model == 1 else checkpoint("olmoe")), cache=4,
                         weights=weights, seed=seed)
        text = [(ids[0] + 1) % 160, *ids[1:]] if more.pop("text", 0) else ids
        sweep = ml.sweep(engine, text, **{"window": WINDOW, "store": tmp_path, **more})
        engine.close()
        return {sweep._keeping._key(setting) for setting in sweep.settings}

    assert len(keys()) == 2 and not keys() & keys(**change)


def test_results_are_json_and_plain_arrays_and_a_damaged_one_is_measured_again(engine, ids, passes, tmp_path):
    arguments = dict(routing=ROUTING[:2], cache=3, window=WINDOW, store=tmp_path)
    first = ml.sweep(engine, ids, **arguments).to_frame()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".npz"}
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        path.write_bytes(path.read_bytes()[:50])
    passes.clear()
    assert ml.sweep(engine, ids, **arguments).to_frame().equals(first)
    assert passes


def test_a_size_below_the_floor_is_skipped_with_its_reason(engine, ids, tmp_path):
    sweep = ml.sweep(engine, ids, routing="original", cache=[1, 3, "5%"], window=WINDOW, store=tmp_path)
    assert [p.cache for p in sweep] == [3]
    assert [what for what, _ in sweep.skipped] == ["cache=1", "cache='5%'"]
    assert all("under the floor" in why for _, why in sweep.skipped) and "skipped cache=1" in repr(sweep)
    with pytest.raises(BudgetError, match="under the floor"):
        ml.sweep(engine, ids, cache=1, window=WINDOW, store=tmp_path)


def test_a_policy_that_fails_on_the_way_is_skipped_and_the_rest_goes_on(engine, ids, tmp_path):
    @ml.routing.policy
    def fragile(logits, weights, K, resident, state, params, scores):
        scores[:] = logits
        if state[1] > 30:
            scores[0] = np.nan

    sweep = ml.sweep(engine, ids, routing=[fragile, "original"], cache=3, window=WINDOW, store=tmp_path)
    assert [p.routing for p in sweep] == ["original"]
    assert sweep.skipped[0][0].startswith("fragile") and "NaN" in sweep.skipped[0][1]
    with pytest.raises(PolicyError, match="NaN"):
        ml.sweep(engine, ids, routing=fragile, cache=3, window=WINDOW, store=tmp_path).finish()


@pytest.mark.parametrize(("wrong", "error", "words"), [
    (dict(routing=["original", "cache-pior"]), PolicyError, "'cache-prior'"),
    (dict(eviction=["lru", "belady"]), PolicyError, "unknown eviction policy 'belady'"),
    (dict(routing=[]), SettingError, "nothing to sweep"),
    (dict(cache=[]), SettingError, "nothing to sweep"),
    (dict(cache="half"), SettingError, "is not a budget"),
    (dict(window=0), SettingError, "context of 256"),
    (dict(window=200), SettingError, "the text has 131 tokens and a window of 200 needs 201"),
    (dict(store=3), SettingError, "is not a folder"),
    (dict(text=[1, 2, 999]), SettingError, "holds the id 999"),
    (dict(text="words"), SettingError, "no tokenizer"),
])
def test_what_cannot_work_is_refused_before_any_work(engine, ids, passes, wrong, error, words, tmp_path):
    arguments = {"window": WINDOW, "store": tmp_path, **wrong}
    with pytest.raises(error, match=words):
        ml.sweep(engine, arguments.pop("text", ids), **arguments)
    assert not passes


def test_two_different_policies_under_one_name_are_refused_and_one_with_parameters_is_not(engine, ids, tmp_path):
    def made(factor):
        @ml.eviction.policy(bias=ml.Parameter(1, 0, 4))
        def mine(expert, stats, state, params, now):
            return factor * stats.last_use[expert] + params[0]
        return mine

    one, other, same = made(1.0), made(-1.0), made(1.0)
    with pytest.raises(PolicyError, match="two different eviction policies are called 'mine'"):
        ml.sweep(engine, ids, eviction=[one, other], window=WINDOW, store=tmp_path)
    sweep = ml.sweep(engine, ids, routing="original", eviction=[one, one(bias=2), same(bias=3)], window=WINDOW,
                     store=tmp_path)
    assert [p.eviction for p in sweep] == ["mine", "mine(bias=2)", "mine(bias=3)"]
    assert code_of(one) == code_of(same) != code_of(other)


def test_littles_law_holds_up_to_the_fence_posts(engine, rng, tmp_path):
    ids = rng.integers(0, 160, 241).tolist()
    for point in ml.sweep(engine, ids, routing=ROUTING, cache=[2, 4], window=240, store=tmp_path):
        assert 0.93 < point.little_check <= 1
        assert point.lifetime == pytest.approx(point.cache / (2 * point.miss_rate), rel=0.08)


def test_a_stay_lasts_from_its_load_to_its_eviction():
    from moe_lab.eviction import LRU
    from moe_lab.kernels.residency import LayerState
    from moe_lab.kernels.walk import walk
    from moe_lab.kernels.walked import Walked
    from moe_lab.routing import Original

    state = LayerState.new(4, 1, 1, Original(), LRU())
    z = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 1, 2]]
    tally = measuring.Tally(1, 4, 1)
    tally.add(Walked(*(part[None] for part in walk(state, z, z))))
    counts = tally.record()
    assert counts["misses"] == [3] and counts["stay"] == [6] and counts["waits"] == [3]     # stays of 2, 3 and 1 tokens


def test_intervals_are_paired_over_windows(engine, ids, tmp_path):
    point = ml.sweep(engine, ids, routing=ROUTING[1], cache=2, window=WINDOW, store=tmp_path).finish().points[0]
    engine.routing = "original"
    base = engine.score(ids, window=WINDOW)
    n = np.array([40, 40, 40, 10])
    change = paired(np.array(point.window_losses) * n, np.array(base.window_losses) * n, n)
    assert (point.increase, point.increase_low, point.increase_high) == pytest.approx(np.expm1(change).tolist())
    assert point.increase == pytest.approx(point.perplexity / base.perplexity - 1)
    assert point.increase_low < point.increase < point.increase_high


def test_pairing_takes_out_what_windows_differ_by(rng):
    windows = rng.normal(3, 1, 30) * 100
    found = paired(windows + 1 + rng.normal(0, 0.1, 30), windows, [100] * 30)
    assert found.low < 0.01 < found.high and found.high - found.low < 0.002
    assert math.isnan(paired([2.0], [1.0], [10]).low)


def test_intervals_cover_the_truth_as_often_as_they_say(rng):
    n = np.array([100] * 7 + [37])
    hits = 0
    for _ in range(1000):
        differences = n * 0.01 + rng.normal(0, 1, 8) * np.sqrt(n)
        found = paired(differences, np.zeros(8), n)
        hits += found.low <= 0.01 <= found.high
    assert 0.92 < hits / 1000 < 0.98
    assert student(0.975, 1000) == pytest.approx(1.962, abs=1e-3)


def test_the_front_holds_what_no_other_point_beats_and_best_keeps_to_the_loss(engine, ids, tmp_path):
    sweep = ml.sweep(engine, ids, routing=["original", *(ml.routing.CachePrior(penalty=p) for p in (0.1, 0.3, 1))],
                     eviction=["lru", "fifo"], cache=[3, 5], window=WINDOW, store=tmp_path)
    front, points = sweep.pareto(), sweep.points
    for point in points:
        beaten = [p for p in points if p.miss_rate <= point.miss_rate and p.perplexity <= point.perplexity
                  and (p.miss_rate, p.perplexity) != (point.miss_rate, point.perplexity)]
        assert (point in front) == (not beaten)
    limit = sorted(p.increase for p in points if p.cache == 3)[4]
    best = sweep.best(max_increase=max(limit, 0.0), cache=3)
    assert best.miss_rate == min(p.miss_rate for p in points if p.cache == 3 and p.increase <= max(limit, 0.0))
    assert sweep.best(np.float32(1e9)) == sweep.best(np.int64(10**9)) == sweep.best(np.inf) == sweep.best(1e9)
    assert sweep.best(max_increase=1e9).miss_rate == min(p.miss_rate for p in points)
    with pytest.raises(SettingError, match="no point has 7 slots"):
        sweep.best(cache=7)
    only = ml.sweep(engine, ids, routing=ml.routing.CachePrior(penalty=1), cache=2, window=WINDOW, store=tmp_path)
    if only.finish().points[0].increase > 0:
        with pytest.raises(SettingError, match="no point stays within"):
            only.best(max_increase=0.0)


def test_frames_and_words(engine, ids, tmp_path):
    sweep = ml.sweep(engine, ids, routing=ROUTING, cache=3, window=WINDOW, store=tmp_path)
    assert "0 of 3 points, 130 tokens" in repr(sweep) and len(sweep) == 3
    frame, by_layer = sweep.to_frame(), sweep.to_frame(layers=True)
    wanted = {"eviction", "cache", "hit_rate", "miss_rate", "bound_hit_rate", "routing", "perplexity", "kl",
              "agreement", "mass_kept", "loads_per_token", "lifetime", "little_check", "regret", "swapped_share"}
    assert wanted <= set(frame.columns) and len(by_layer) == 9
    mean = by_layer.groupby("routing", sort=False)["miss_rate"].mean()
    assert mean.tolist() == pytest.approx(frame["miss_rate"].tolist())
    assert frame["loads_per_token"].tolist() == pytest.approx((frame["miss_rate"] * 6).tolist())
    assert "cache-prior(penalty=0.3)" in repr(sweep)


def test_a_figure_grows_with_the_sweep(engine, ids, tmp_path):
    pytest.importorskip("plotly")
    sweep = ml.sweep(engine, ids, routing=ROUTING, cache=3, window=WINDOW, store=tmp_path)
    next(iter(sweep))
    assert len(sweep.figure(finish=False).data) == 1
    figure = sweep.figure()
    assert len(figure.data) == 3 and {len(line.x) for line in figure.data} == {1}


def test_a_model_with_its_own_routing_sweeps_evictions_only(checkpoint, ids, tmp_path):
    engine = ml.load(str(checkpoint("granite")), cache=4)
    with pytest.raises(SettingError, match="routing policies are off"):
        ml.sweep(engine, ids, window=WINDOW, store=tmp_path)
    point = ml.sweep(engine, ids, routing="original", eviction="fifo", cache=3, window=WINDOW,
                     store=tmp_path).finish().points[0]
    engine.eviction = "fifo"
    engine.cache.resize(3)
    score = engine.score(ids, window=WINDOW)
    assert (point.digest, point.miss_rate) == (score.stats.digest, score.miss_rate)
    engine.close()
