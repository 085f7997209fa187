"""Tuning keeps to the loss it is allowed, says why, and writes a file that loads again."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.engine.setup import Setup, setup_of
from moe_lab.errors import BudgetError, PolicyError, SettingError, TraceError
from moe_lab.evaluation.tune import highest, tune

WINDOW = 40
QUICK = dict(window=WINDOW, compute_s=0.01)


@pytest.fixture
def ids(rng):
    return rng.integers(0, 160, 3 * WINDOW + 1).tolist()


@pytest.fixture
def engine(checkpoint):
    made = ml.load(str(checkpoint("olmoe")), cache=4, disk=ml.Disk("50 MB/s", latency="0.1 ms"))
    yield made
    made.close()


def test_the_choice_is_the_fastest_of_those_within_the_loss(engine, ids, tmp_path):
    penalised = [ml.routing.CachePrior(penalty=p, keep_top=1) for p in (0.05, 0.1, 0.2, 0.4, 0.8)]
    losses = [p.increase for p in ml.sweep(engine, ids, routing=penalised, cache=4, window=WINDOW, store=tmp_path)]
    limit = max(max(losses) / 2, 1e-6)
    assert max(losses) > limit, f"this model loses nothing: {losses}"
    found = tune(engine, ids, max_increase=limit, store=tmp_path, **QUICK)
    costs = ml.DiskModel(50e6, engine.spec.expert_bytes["f32"], 0.01, 1e-4, simulated=True)
    assert found.costs == costs and found.cache == 4
    points = found.evidence.points
    seconds = {p: costs.seconds(p.loads_per_token, p.waits_per_token) for p in points}
    allowed = [p for p in points if p.increase <= limit]
    assert found.seconds_per_token == min(seconds[p] for p in allowed) <= found.plain_seconds_per_token
    assert found.increase <= limit
    assert any(p.increase > limit for p in points), "the search has not looked beyond what is allowed"
    assert {p.setting.routing.keep_top for p in points if not p.exact} == {1}       # of two, one may be protected
    assert "a simulated disk" in repr(found)


def test_without_any_loss_only_evictions_are_compared(engine, ids, tmp_path):
    found = tune(engine, ids, max_increase=0, store=tmp_path, **QUICK)
    assert all(p.exact for p in found.evidence.points) and found.increase == 0 and len(found.evidence) == 7
    assert found.miss_rate == min(p.miss_rate for p in found.evidence.points)


def test_a_list_of_routings_takes_the_place_of_the_search(engine, ids, tmp_path):
    routing = [ml.routing.MaxRank(window=3), "cache-prior"]
    found = tune(engine, ids, max_increase=0.5, cache="75%", routing=routing, eviction="lru", store=tmp_path, **QUICK)
    assert [(p.routing, p.cache) for p in found.evidence.points] == [
        ("original", 6), ("max-rank(window=3)", 6), ("cache-prior", 6)]


def test_the_search_climbs_until_the_loss_is_reached_and_then_halves():
    class At:
        def __init__(self, increase):
            self.increase = increase

    assert highest(lambda p: At(p / 10), 0.02) == pytest.approx(0.2, abs=0.03)
    assert highest(lambda p: At(p), 1e-9) == 0
    assert highest(lambda p: At(0.0), 0.01) == 0.8
    assert highest(lambda p: None, 0.01) == 0


def test_a_setup_loads_again_and_what_is_typed_goes_first(engine, ids, checkpoint, tmp_path):
    path = tmp_path / "fast.json"
    found = tune(engine, ids, max_increase=0.5, cache=3, setup=path, store=tmp_path / "results", **QUICK)
    assert isinstance(found.routing, ml.routing.CachePrior)
    again = ml.load(str(checkpoint("olmoe")), setup=path)
    assert (again.routing, again.eviction, again.cache.slots) == (found.routing, found.eviction, 3)
    score = again.score(ids, window=WINDOW)
    assert score.miss_rate == pytest.approx(found.miss_rate)
    again.close()
    other = ml.load(str(checkpoint("olmoe")), setup=str(path), routing="original", cache=5)
    assert (other.routing, other.eviction, other.cache.slots) == (ml.routing.Original(), found.eviction, 5)
    other.close()
    evidence = json.loads(path.read_text())["evidence"]
    assert evidence["increase"] == found.increase and evidence["costs"]["simulated"] is True


def test_a_setup_keeps_the_format_of_the_dense_part_and_one_without_it_is_read_as_before(checkpoint, ids, tmp_path):
    path, folder = tmp_path / "fast.json", str(checkpoint("olmoe"))
    engine = ml.load(folder, cache=4, weights="bf16", dense="q8")
    tune(engine, ids, max_increase=0, setup=path, store=False, **QUICK)
    wanted = engine.score(ids, window=WINDOW).perplexity
    engine.close()
    again = ml.load(folder, setup=path, routing="original")
    assert (again.precision, again.score(ids, window=WINDOW).perplexity) == ("bf16, dense q8", wanted)
    again.close()
    typed = ml.load(folder, setup=path, dense="f32")
    assert typed.precision == "bf16, dense f32"
    typed.close()
    whole = json.loads(path.read_text())
    old = {key: value for key, value in whole.items() if key != "dense"}
    for content, precision in [(old, "bf16"), ({**old, "weights": "q4"}, "q4, dense q8")]:
        path.write_text(json.dumps(content))
        before = ml.load(folder, setup=path)
        assert before.precision == precision
        before.close()
    for wrong, words in [(7, "formats must be texts"), ("q9", "dense='q9' is not a format")]:
        path.write_text(json.dumps({**whole, "dense": wrong}))
        with pytest.raises(SettingError, match=words):
            ml.load(folder, setup=path)


def test_a_policy_of_ones_own_that_is_called_like_a_shipped_one_is_not_loaded_as_that(engine, tmp_path):
    class Mine(ml.eviction.FIFO):
        name = "fifo"

    path = tmp_path / "fast.json"
    setup_of(ml.routing.Original(), Mine(), 4, "f32", engine.spec, {}).write(path)
    with pytest.raises(PolicyError, match=r"'fifo \(your own\)', which is not one of MoE Lab's"):
        ml.load(engine.spec.name, setup=path)


def test_a_place_where_no_setup_can_be_written_is_refused_before_anything_is_measured(engine, ids, tmp_path):
    for place in (tmp_path, tmp_path / "nowhere" / "fast.json"):
        with pytest.raises(SettingError, match="no file can be written there"):
            tune(engine, ids, setup=place, store=tmp_path / "store")
    assert not (tmp_path / "store").exists() and engine.telemetry.token == 0


def test_a_setup_whose_writing_is_cut_off_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "fast.json"
    setup = Setup("lru", {}, "original", {}, 4, "bf16", {"experts": 8}, dense="q8")
    setup.write(path)

    def cut(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        setup.write(path)
    assert [one.name for one in tmp_path.iterdir()] == ["fast.json"] and Setup.read(path) == setup


def test_a_setup_of_another_shape_or_a_damaged_one_is_refused(engine, ids, checkpoint, tmp_path):
    path, folder = tmp_path / "fast.json", str(checkpoint("olmoe"))
    tune(engine, ids, max_increase=0, setup=path, store=False, **QUICK)
    with pytest.raises(SettingError, match=r"tuned on a model of another shape .*expert_hidden 48"):
        ml.load(str(checkpoint("qwen2-moe")), setup=path)
    whole = json.loads(path.read_text())
    cases = [("not json", "is not JSON"), ("[1]", "is no setup"),
             (json.dumps({**whole, "moe_lab_setup": 9}), "is no setup"),
             (json.dumps({k: v for k, v in whole.items() if k != "cache"}), "is not whole"),
             (json.dumps({**whole, "cache": "many"}), "is damaged")]
    for text, words in cases:
        path.write_text(text)
        with pytest.raises(SettingError, match=words):
            ml.load(folder, setup=path)
    with pytest.raises(SettingError, match="cannot be read"):
        ml.load(folder, setup=tmp_path / "none.json")
    path.write_text(json.dumps({**whole, "eviction": {"name": "mine", "values": {}}}))
    with pytest.raises(PolicyError, match="'mine', which is not one of MoE Lab's"):
        ml.load(folder, setup=path)
    ml.load(folder, setup=path, eviction="lru").close()
    path.write_text(json.dumps({**whole, "cache": 1}))
    with pytest.raises(BudgetError, match="under the floor"):
        ml.load(folder, setup=path)


def test_a_trace_tunes_evictions_and_one_of_another_shape_is_refused(engine, ids, checkpoint, rng):
    trace = engine.score(ids, window=WINDOW).trace
    found = tune(engine, trace, compute_s=0.01)
    frame = found.evidence.to_frame()
    assert found.miss_rate == frame["miss_rate"].min() and found.routing == ml.routing.Original()
    with pytest.raises(TraceError, match=r"2 layers x 8 experts, top-2, where .* has 3 layers"):
        tune(engine, ml.Trace(ids=trace.ids[:, :2], experts=8), compute_s=0.01)
    with pytest.raises(SettingError, match="says nothing of other routings"):
        tune(engine, trace, routing="cache-prior", compute_s=0.01)


def test_compute_is_measured_by_a_short_generation(engine, ids):
    costs = tune(engine, ids, max_increase=0, eviction="lru", window=WINDOW, store=False).costs
    assert 0 < costs.compute_s < 1 and engine.stats.decode.tokens == 23
    assert (costs.bandwidth, costs.latency_s) == (50e6, 1e-4)


def test_the_real_disk_is_measured(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache=4)
    assert engine.disk_rate() > 1e6
    engine.close()


@pytest.mark.parametrize(("wrong", "error", "words"), [
    (dict(max_increase=-1), SettingError, "max_increase=-1"),
    (dict(max_increase=np.float32(-1)), SettingError, "max_increase=.*-1.0"),
    (dict(compute_s=True), SettingError, "compute_s=True"),
    (dict(max_increase="1%"), SettingError, "max_increase='1%'"),
    (dict(compute_s=-1), SettingError, "compute_s=-1"),
    (dict(cache=1), BudgetError, "under the floor"),
    (dict(eviction="belady"), PolicyError, "unknown eviction policy"),
    (dict(window=200), SettingError, "needs 201"),
])
def test_what_cannot_be_tuned_is_refused(engine, ids, wrong, error, words):
    with pytest.raises(error, match=words):
        tune(engine, ids, **{**QUICK, "store": False, **wrong})
    assert engine.telemetry.token == 0
