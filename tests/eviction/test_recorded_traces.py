"""The zoo on traces of real models: what live eviction can win over LRU, and that nobody passes Belady."""

from __future__ import annotations

import functools

import pytest
from layers import TRACES

import moe_lab as ml
from moe_lab.eviction import EVICTION

pytestmark = pytest.mark.skipif(not TRACES.exists(), reason="recorded traces are not here")

REPLAYED = [kind() for kind in EVICTION.values() if "logits" not in kind.needs]


@functools.cache
def rates(name: str, slots: int) -> dict[str, float]:
    """Hit rates in points by policy, Belady's bound among them."""
    trace = (ml.Trace.read(TRACES / "olmoe-299.jsonl", experts=64) if name == "olmoe" else
             ml.Trace.read(TRACES / "qwen3-30b-a3b.route.csv").decode)
    rows = list(ml.replay(trace, eviction=REPLAYED, cache=slots))
    return {**{row.eviction: 100 * row.hit_rate for row in rows}, "belady": 100 * rows[0].bound_hit_rate}


@pytest.mark.parametrize(("name", "slots", "fifo", "lru", "lfu", "belady"), [
    ("olmoe", 16, 57.6, 59.7, 59.9, 72.3), ("olmoe", 32, 76.5, 79.4, 80.6, 89.9),
    ("qwen3", 12, 50.2, 51.8, 56.8, 66.7), ("qwen3", 24, 68.4, 72.2, 75.0, 83.6)])
def test_the_reference_figures_come_out(name: str, slots: int, fifo: float, lru: float, lfu: float,
                                        belady: float) -> None:
    found = rates(name, slots)
    assert [found[key] for key in ("fifo", "lru", "lfu", "belady")] == pytest.approx([fifo, lru, lfu, belady], abs=0.1)


@pytest.mark.parametrize(("name", "slots", "points"), [("olmoe", 16, 2), ("qwen3", 12, 4)])
def test_the_best_live_policy_beats_lru_by_points(name: str, slots: int, points: float) -> None:
    found = rates(name, slots)
    best = max(rate for key, rate in found.items() if key != "belady")
    assert best >= found["lru"] + points
    assert best == max(found["aged-lfu"], found["learned"])


@pytest.mark.parametrize(("name", "slots"), [("olmoe", 16), ("olmoe", 32), ("qwen3", 12), ("qwen3", 24)])
def test_every_policy_lies_between_no_idea_and_belady(name: str, slots: int) -> None:
    found = rates(name, slots)
    assert max(found, key=found.__getitem__) == "belady"
    assert min(found.values()) > found["random"] - 2
