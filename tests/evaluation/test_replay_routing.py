"""Recorded logits routed again: what the walk gives, marked as approximate; and the figures that show a replay."""

from __future__ import annotations

import numpy as np
import pytest
from layers import new_layer, random_ids, softmax

import moe_lab as ml
from moe_lab.errors import PolicyError
from moe_lab.kernels.belady import belady
from moe_lab.kernels.walk import walk

E, K, L = 12, 3, 2
PRIOR = ml.routing.CachePrior(penalty=0.3)


@pytest.fixture
def trace(rng: np.random.Generator) -> ml.Trace:
    """Logits in float16 and the routes that belong to them."""
    logits = (rng.standard_normal((150, L, E)) + rng.standard_normal((L, E))).astype(np.float16)
    ids = np.argsort(-logits.astype(np.float32), axis=2, kind="stable")[:, :, :K]
    return ml.Trace(ids=ids, logits=logits, experts=E)


def walked(trace: ml.Trace, policy: ml.routing.CachePrior, slots: int) -> list:
    rows = trace.logits.astype(np.float32).transpose(1, 0, 2)
    return [walk(new_layer(E, K, slots, policy, None, layer), z, softmax(z)) for layer, z in enumerate(rows)]


def test_routing_again_is_the_walk_over_the_recorded_logits(trace: ml.Trace) -> None:
    found = ml.replay(trace, routing=["original", PRIOR, "pruned"], cache=[4, 6])
    for row in found.rows[2:4]:
        routes = walked(trace, PRIOR, row.cache)
        misses = sum(int((~one.hits).sum()) for one in routes)
        bound = sum(belady(one.ids, E, row.cache) for one in routes)
        assert row.miss_rate == pytest.approx(misses / (150 * L * K))
        assert row.bound_hit_rate == pytest.approx(1 - bound / (150 * L * K))
        assert row.regret == pytest.approx(misses / bound)
        assert row.swapped_share == pytest.approx(np.mean([(one.rank >= K).mean() for one in routes]))
        assert row.mass_kept == pytest.approx(np.mean([one.mass.mean() for one in routes]))
        assert row.approximate and row.over_lru < 0 and row.over_lru_high < 0
    pruned = found.rows[4]
    assert pruned.loads_per_token == pytest.approx(pruned.miss_rate * L * (K - 1))       # one expert less a layer


def test_the_original_routing_is_what_was_recorded_and_needs_no_logits(trace: ml.Trace) -> None:
    plain = ml.replay(trace, cache=[4, 6])
    routed = ml.replay(ml.Trace(ids=trace.ids, experts=E), routing="original", cache=[4, 6])
    for a, b in zip(plain, routed, strict=True):
        assert (a.hit_rate, a.miss_low, a.bound_hit_rate) == (b.hit_rate, b.miss_low, b.original_bound_hit_rate)
        assert not b.approximate and b.mass_kept == 1 and b.swapped_share == 0


def test_what_is_approximate_says_so(trace: ml.Trace) -> None:
    found = ml.replay(trace, routing=["original", PRIOR], cache=4)
    assert "~cache-prior(penalty=0.3)" in repr(found) and "are approximate" in repr(found)
    frame = found.to_frame()
    assert frame["approximate"].tolist() == [False, True]
    assert {"routing", "swapped_share", "mass_kept", "original_bound_hit_rate"} <= set(frame.columns)
    assert "routing" not in ml.replay(trace, cache=4).to_frame().columns
    assert "approximate" not in repr(ml.replay(trace, routing="original", cache=4))


def test_without_logits_a_routing_is_skipped_with_the_reason(trace: ml.Trace) -> None:
    bare = ml.Trace(ids=trace.ids, experts=E)
    rows = ml.replay(bare, routing=["original", PRIOR], cache=4).rows
    assert not rows[0].skipped and "needs router logits" in rows[1].skipped and "logits=True" in rows[1].skipped
    with pytest.raises(PolicyError, match="needs router logits"):
        ml.replay(bare, routing=PRIOR, cache=4)


def test_a_routing_that_follows_a_schedule_is_followed(trace: ml.Trace) -> None:
    late = ml.routing.CachePrior(penalty=ml.routing.Schedule({0: 0, 150: 0.3}))
    early = ml.routing.CachePrior(penalty=ml.routing.Schedule({0: 0, 75: 0.3}))
    original, never, half, always = ml.replay(trace, routing=["original", late, early, PRIOR], cache=5)
    assert never.miss_rate == original.miss_rate and never.approximate
    assert always.miss_rate < half.miss_rate < never.miss_rate


# --- figures ---------------------------------------------------------------------------------------


def test_a_figure_has_a_line_and_a_band_for_each_policy_and_the_bound_below(trace: ml.Trace) -> None:
    pytest.importorskip("plotly")
    found = ml.replay(trace, eviction=["lru", "lfu"], cache=[4, 6, 8])
    figure = found.figure()
    lines = {line.name: line for line in figure.data if line.name}
    assert set(lines) == {"lru", "lfu", "Belady's bound"} and len(figure.data) == 5
    assert list(lines["lfu"].x) == [4, 6, 8]
    assert list(lines["lfu"].y) == [row.miss_rate for row in found.rows[3:]]
    assert list(lines["Belady's bound"].y) == [1 - row.bound_hit_rate for row in found.rows[:3]]
    assert lines["Belady's bound"].line.dash == "dash"
    band = next(one for one in figure.data if one.fill == "toself")
    assert list(band.y) == [*(row.miss_high for row in found.rows[:3]), *(row.miss_low for row in found.rows[2::-1])]
    assert "miss rate" in figure.layout.yaxis.title.text and "slots a layer, of 12" in figure.layout.xaxis.title.text


def test_a_figure_of_several_traces_has_a_panel_for_each(trace: ml.Trace, rng: np.random.Generator) -> None:
    pytest.importorskip("plotly")
    other = ml.Trace(ids=random_ids(rng, 40, 3, 20)[:, None], experts=20)
    figure = ml.replay({"a": trace, "b": other}, cache=["50%", "75%"]).figure()
    assert [note.text for note in figure.layout.annotations] == ["a", "b"]
    assert {line.xaxis for line in figure.data} == {"x", "x2"}


def test_one_size_is_a_dot_for_each_policy(trace: ml.Trace) -> None:
    pytest.importorskip("plotly")
    figure = ml.replay(trace, eviction=["lru", "lfu", "mrs"], routing=["original", PRIOR], cache=5).figure()
    assert [line.x[0] for line in figure.data] == [
        "lru", "lfu", "mrs", *(f"~cache-prior(penalty=0.3), {name}" for name in ("lru", "lfu", "mrs"))]
    assert "~ approximate" in figure.layout.title.text


def test_a_pool_shows_where_it_begins_to_hold_a_token(trace: ml.Trace) -> None:
    pytest.importorskip("plotly")
    figure = ml.replay(trace, cache="all", pooled=True).figure()
    assert figure.layout.shapes[0].x0 == L * K
    assert "slots of the pool, of 24" in figure.layout.xaxis.title.text
