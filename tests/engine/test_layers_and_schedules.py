"""Parameters that differ by layer or follow the tokens, in an engine and in all that is made of one."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.engine.setup import Setup, setup_of
from moe_lab.errors import PolicyError
from moe_lab.eviction import EVICTION, LFRU, AgedLFU, LearnedEviction
from moe_lab.kernels.layout import OWN
from moe_lab.policy import Schedule
from moe_lab.routing import ROUTING, CachePrior, MaxRank

PROMPT = [5, 17, 3, 90, 41]
IDS = (np.arange(61) * 37 % 160).tolist()
RAMP = Schedule({0: 0.0, 20: 1.5, 33: 0.3})


@pytest.fixture
def engine(checkpoint):
    made = ml.load(str(checkpoint("olmoe")), cache=4)
    yield made
    made.close()


def test_a_list_is_as_layers_that_are_set_one_by_one(engine):
    penalties, half_lives = [0.0, 0.4, 1.5], [1, 16, 200]
    engine.routing, engine.eviction = CachePrior(penalty=penalties), AgedLFU(half_life=half_lives)
    found = engine.generate(PROMPT, max_new_tokens=40, stop_at_end=False)
    assert "penalty=[0, 0.4, 1.5]" in repr(engine) and "half_life=[1, 16, 200]" in found.stats.setting
    engine.routing, engine.eviction = "original", "lru"
    engine.cache.reset()
    for state, penalty, half_life in zip(engine._core.experts.states, penalties, half_lives, strict=True):
        state.set_routing(CachePrior(penalty=penalty))
        state.set_eviction(AgedLFU(half_life=half_life))
    again = engine.generate(PROMPT, max_new_tokens=40, stop_at_end=False)
    assert (again.ids, again.stats.digest) == (found.ids, found.stats.digest)
    assert found.stats.decode.swapped > 0


def test_a_schedule_is_as_setting_each_number_at_its_token(engine):
    engine.routing = CachePrior(penalty=RAMP)
    found = engine.generate(PROMPT, max_new_tokens=40, stop_at_end=False)
    by_hand = ml.load(engine.files[0].rsplit("/", 1)[0], cache=4, routing=CachePrior(penalty=0.0))
    ids = []
    for step in by_hand.stream(PROMPT, max_new_tokens=40, stop_at_end=False):
        ids += step.ids
        if by_hand.telemetry.token in (20, 33):
            by_hand.routing = CachePrior(penalty=RAMP.at(0, by_hand.telemetry.token))
    assert (tuple(ids), by_hand.stats.digest) == (found.ids, found.stats.digest)
    by_hand.close()


def test_a_schedule_counts_on_over_runs_and_an_emptied_cache(engine):
    engine.routing = CachePrior(penalty=Schedule({0: 0.0, 60: 5.0}), keep_top=0)
    first = engine.generate(PROMPT, max_new_tokens=30, stop_at_end=False)
    engine.cache.reset()
    second = engine.generate(PROMPT, max_new_tokens=30, stop_at_end=False)
    assert first.stats.decode.swapped == 0 < second.stats.decode.swapped
    assert {state.token for state in engine._core.experts.states} == {engine.telemetry.token} == {68}


def test_new_numbers_for_a_class_keep_what_it_has_learned(engine):
    engine.routing = CachePrior(penalty=0.2)
    engine.generate(PROMPT, max_new_tokens=9)
    learned = [state.route_state.copy() for state in engine._core.experts.states]
    for policy in (CachePrior(penalty=[0.1, 0.2, 0.3]), CachePrior(penalty=RAMP), CachePrior(penalty=0.4)):
        engine.routing = policy
        for state, before in zip(engine._core.experts.states, learned, strict=True):
            assert np.array_equal(state.route_state, before) and before[OWN] > 0


@pytest.mark.parametrize("numbers", [[0.1, 0.2], [0.1, 0.2, 0.3, 0.4]])
def test_a_list_of_another_length_is_refused_before_anything_changes(engine, checkpoint, numbers):
    engine.generate(PROMPT, max_new_tokens=4)
    before = engine.routing, engine.eviction, engine.cache.resident
    said = f"is given for {len(numbers)} layers, and the model has 3 MoE layers; type one number for each"
    with pytest.raises(PolicyError, match=said):
        engine.routing = CachePrior(penalty=numbers)
    with pytest.raises(PolicyError, match=said):
        engine.eviction = LFRU(age_power=numbers)
    with pytest.raises(PolicyError, match=said):
        ml.sweep(engine, IDS, routing=CachePrior(penalty=numbers), window=20, store=False)
    with pytest.raises(PolicyError, match=said):
        ml.load(str(checkpoint("olmoe")), eviction=LFRU(age_power=numbers))
    assert (engine.routing, engine.eviction) == before[:2] and np.array_equal(engine.cache.resident, before[2])
    assert len(engine.generate(PROMPT, max_new_tokens=4).ids) == 4


def test_a_refusal_rises_in_the_thread_that_asked_while_another_generates(engine):
    caught: list[BaseException] = []

    def other() -> None:
        try:
            engine.routing = CachePrior(penalty=[0.1])
        except PolicyError as error:
            caught.append(error)

    for step in engine.stream(PROMPT, max_new_tokens=4):
        if step.index == 1:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
    assert len(caught) == 1 and step.finish == "length" and engine.exact


def test_a_sweep_over_such_policies_is_what_the_engine_scores(engine, tmp_path):
    routing = [CachePrior(penalty=[0.0, 0.4, 1.5]), CachePrior(penalty=RAMP), MaxRank(window=Schedule({0: 2, 30: 6}))]
    grid = {"routing": [ml.routing.Original(), *routing], "cache": 4, "window": 30, "store": tmp_path,
            "eviction": [AgedLFU(half_life=Schedule({0: 1, 25: 64})), AgedLFU(half_life=[1, 9, 99])]}
    done = ml.sweep(engine, IDS, **grid)
    labels = set()
    for point in done:
        engine.routing, engine.eviction = point.setting.routing, point.setting.eviction
        score = engine.score(IDS, window=30)
        assert point.digest == score.stats.digest
        assert point.miss_rate == pytest.approx(score.miss_rate, abs=1e-9)
        labels.add((point.routing, point.eviction))
    assert len(labels) == 8 and ("cache-prior(penalty=[0, 0.4, 1.5])", "aged-lfu(half_life=[1, 9, 99])") in labels
    assert [point.digest for point in ml.sweep(engine, IDS, **grid)] == [point.digest for point in done.points]


@pytest.mark.parametrize(("routing", "eviction"), [
    (CachePrior(penalty=[0.0, 0.4, 1.5], keep_top=2), AgedLFU(half_life=Schedule({0: 1, 25: 64}))),
    (MaxRank(window=Schedule({0: 2, 30: 6})), AgedLFU(half_life=[1, 9, 99])),
    (CachePrior(logit_range="token"), LearnedEviction(weights=np.linspace(-1, 1, len(LearnedEviction().weights)))),
])
def test_a_setup_brings_such_policies_back(engine, tmp_path, routing, eviction):
    path = tmp_path / "setup.json"
    setup_of(routing, eviction, 3, "f32", engine.spec, {"perplexity": 1.0}).write(path)
    read = Setup.read(path)
    assert read.policy("routing", ROUTING) == routing and read.policy("eviction", EVICTION) == eviction
    loaded = ml.load(engine.files[0].rsplit("/", 1)[0], setup=path)
    assert (loaded.routing, loaded.eviction, loaded.cache.slots) == (routing, eviction, 3)
    loaded.close()
