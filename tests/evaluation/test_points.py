"""NaN is an error or a reason, infinity stays infinity, and neither upsets choices, fronts, frames and figures."""

from __future__ import annotations

import math

import pytest
import torch

import moe_lab as ml
from moe_lab.errors import MoELabError, NotFiniteError, SettingError
from moe_lab.evaluation import measure as measuring
from moe_lab.evaluation.measure import Setting, compare
from moe_lab.evaluation.points import point_of
from moe_lab.evaluation.tune import highest

WINDOW = 20
ROUTING = ["original", ml.routing.CachePrior(penalty=0.3), ml.routing.MaxRank(window=4)]


@pytest.fixture
def ids(rng):
    return rng.integers(0, 160, 3 * WINDOW + 1).tolist()


@pytest.fixture
def lossy_loss(engine, monkeypatch):
    """Sets what the loss of a window under Cache-Prior is."""
    def to(value):
        loss_of = measuring.loss_of

        def one(*args):
            return value if engine._core.experts.states[0].routing.name == "cache-prior" else loss_of(*args)

        monkeypatch.setattr(measuring, "loss_of", one)

    return to


def test_a_setting_whose_loss_is_nan_is_skipped_with_its_reason_and_the_rest_goes_on(engine, ids, lossy_loss, tmp_path):
    lossy_loss(math.nan)
    sweep = ml.sweep(engine, ids, routing=ROUTING, cache=3, window=WINDOW, store=tmp_path)
    assert [point.routing for point in sweep] == ["original", "max-rank(window=4)"]
    ((what, why),) = sweep.skipped
    assert what.startswith("cache-prior(penalty=0.3)") and "the loss of window 0 is NaN" in why
    with pytest.raises(NotFiniteError, match="is NaN"):
        ml.sweep(engine, ids, routing=ROUTING[1], cache=3, window=WINDOW, store=tmp_path).finish()


def test_nan_under_the_original_routing_is_an_error_and_nothing_is_kept(engine, ids, tmp_path):
    engine.hf.lm_head.weight.data[7] = math.nan
    with pytest.raises(NotFiniteError, match="NaN"):
        ml.sweep(engine, ids, routing=ROUTING, cache=3, window=WINDOW, store=tmp_path).finish()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert issubclass(NotFiniteError, MoELabError) and issubclass(NotFiniteError, ArithmeticError)


def test_an_infinite_loss_is_told_as_infinite_and_is_found_again_so(engine, ids, lossy_loss, tmp_path):
    lossy_loss(math.inf)
    arguments = dict(routing=ROUTING, cache=3, window=WINDOW, store=tmp_path)
    sweep = ml.sweep(engine, ids, **arguments).finish()
    original, infinite, other = sweep.points
    assert infinite.perplexity == infinite.increase == math.inf and math.isnan(infinite.increase_low)
    assert sweep.best(max_increase=1e9) in (original, other)
    assert min(sweep.pareto(), key=lambda p: p.perplexity).perplexity == min(original.perplexity, other.perplexity)
    assert "inf" in repr(sweep) and sweep.to_frame().perplexity.tolist()[1] == math.inf
    assert ml.sweep(engine, ids, **arguments).to_frame().equals(sweep.to_frame())


def test_a_figure_of_infinite_points_is_drawn(engine, ids, lossy_loss, tmp_path):
    pytest.importorskip("plotly")
    lossy_loss(math.inf)
    figure = ml.sweep(engine, ids, routing=ROUTING, cache=3, window=WINDOW, store=tmp_path).figure()
    assert "Infinity" not in figure.to_json() and len(figure.data) == 3


def test_best_says_the_least_increase_though_one_is_nan(engine, ids, lossy_loss, tmp_path):
    lossy_loss(math.inf)
    sweep = ml.sweep(engine, ids, routing=ROUTING[1], cache=3, window=WINDOW, store=tmp_path)
    with pytest.raises(SettingError, match="the least is inf%"):
        sweep.best(0.01)


RECORD = {"tokens": [10, 10], "losses": [20.0, 30.0], "kl": [0.0, 0.0], "same": [10, 10], "digest": "0" * 32,
          "elapsed_s": 1.0, "made": {}, "layers": {name: [4.0] for name in (*measuring.COUNTED, "mass")}}


@pytest.mark.parametrize(("losses", "others", "perplexity", "increase"), [
    ([20.0, 30.0], [20.0, 30.0], math.exp(2.5), 0.0),
    ([1e9, 30.0], [20.0, 30.0], math.inf, math.inf),
    ([math.inf, 30.0], [20.0, 30.0], math.inf, math.inf),
    ([20.0, 30.0], [20.0, math.inf], math.exp(2.5), -1.0),
    ([math.inf, 30.0], [20.0, math.inf], math.inf, math.nan),
])
def test_perplexity_and_increase_of_finite_and_infinite_losses(engine, losses, others, perplexity, increase):
    setting = Setting(ml.routing.CachePrior(), ml.eviction.LRU(), 4)
    point = point_of(setting, {**RECORD, "losses": losses}, {**RECORD, "losses": others}, 0.5,
                     type("Spec", (), {"layers": (0,)}))
    assert point.perplexity == pytest.approx(perplexity)
    assert point.increase == pytest.approx(increase, nan_ok=True)


def test_a_token_that_both_models_rule_out_adds_nothing_to_their_distance():
    original = torch.tensor([[0.0, 1.0, -math.inf]])
    distance, same = compare(original, torch.tensor([[1.0, 1.0, -math.inf]]))
    assert distance == pytest.approx(compare(original[:, :2], torch.ones(1, 2))[0]) and same == 0


def test_the_search_for_a_penalty_stops_at_an_increase_that_is_nan():
    class At:
        increase = math.nan

    assert highest(lambda penalty: At(), 0.5) == 0
