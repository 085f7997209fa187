"""What is resident when a window begins: does it matter?

Knows three starts: nothing, what the window before left, what a window of the other world left. Goes through the live
slots of the engine, since a score of its own always begins empty.
"""

from __future__ import annotations

import sys

import numpy as np

from moe_lab.evaluation.intervals import paired
from moe_lab.pocket.corpus import WORLDS
from moe_lab.routing import CachePrior, Original, RoutingPolicy
from reproduction.bench import Bench, Values, plain
from reproduction.claims import HOLDS, NOT, PART, Claim, judged
from reproduction.words import by_world, interval, percent, table

PENALTY = 0.2
STARTS = ("empty", "left by the window before", "left by the other world")
SLIGHT = 0.005
"""A difference of perplexity that is slight."""


def measure(bench: Bench) -> Values:
    """A row for each world, routing and start; ``increase`` is against the same routing from an empty start."""
    return bench.kept(sys.modules[__name__], [bench.scale.windows], lambda: {"points": [
        found for world in WORLDS for routing in (Original(), CachePrior(penalty=PENALTY))
        for found in _rows(bench, world, routing)]})


def _rows(bench: Bench, world: str, routing: RoutingPolicy) -> list[Values]:
    found = {start: _score(bench, world, routing, start) for start in STARTS}
    tokens = [bench.scale.window] * bench.scale.windows
    empty = np.array(found[STARTS[0]]["losses"]) * bench.scale.window
    rows = []
    for start, one in found.items():
        ends = paired(np.array(one["losses"]) * bench.scale.window, empty, tokens)
        increase = dict(zip(("increase", "increase_low", "increase_high"), np.expm1(ends).tolist(), strict=True))
        rows.append({"world": world, "rule": routing.name, "start": start, "miss_rate": plain(one["miss_rate"]),
                     **{key: plain(value) for key, value in increase.items()}})
    return rows


def _score(bench: Bench, world: str, routing: RoutingPolicy, start: str) -> Values:
    """Losses by window, and the miss rate over all of them."""
    engine, size = bench.engine, bench.scale.window
    other = bench.ids[next(w for w in WORLDS if w != world)]
    engine.routing = Original()                     # a change of class, so that the running range begins anew
    engine.routing, engine.eviction = routing, "lru"
    engine.cache.resize(bench.half)
    engine.cache.reset()
    losses, misses, uses = [], 0, 0
    for at in range(0, len(bench.ids[world]) - 1, size):
        if start != STARTS[1]:
            engine.cache.reset()
        if start == STARTS[2]:
            engine.score(other[at : at + size + 1], window=size, state="live")
        score = engine.score(bench.ids[world][at : at + size + 1], window=size, state="live")
        losses.append(score.loss)
        misses, uses = misses + score.stats.main.misses, uses + score.stats.main.uses
    return {"losses": losses, "miss_rate": misses / uses}


def claims(values: Values) -> list[Claim]:
    """Does the start matter?"""
    most = {w: max(abs(r["increase"]) for r in values["points"] if r["world"] == w) for w in WORLDS}
    return [judged(
        "section 4, ablation", "the initial state of the cache matters little",
        f"half of the experts resident, any start: perplexity within {percent(SLIGHT)} of that from an empty one",
        [m <= SLIGHT for m in most.values()], by_world({w: f"at most {percent(m, 2)} apart" for w, m in most.items()}),
        {HOLDS: "a window is long against the stay of an expert, so what was there first is soon gone",
         PART: "in one world what was there first stays long enough to steer the routes",
         NOT: "under Cache-Prior what was there first stays long enough to steer the routes"})]


def section(values: Values) -> str:
    """A table of starts."""
    rows = [[f"{r['rule']}, {r['start']}", r["world"], percent(r["miss_rate"], 2),
             "" if r["rule"] == "original" else interval(r)] for r in values["points"]]
    return f"""## The initial state

Half of the experts resident, LRU; Cache-Prior with penalty {PENALTY:g} and J 1. Perplexity against the same routing
from an empty start.

{table(["routing, start", "world", "misses", "perplexity"], rows)}
"""
