"""Why it works: disturb the choice at one rank, and look at quality.

Knows two policies of its own, written as any user would write them. They ignore the cache.
"""

from __future__ import annotations

import numpy as np

import moe_lab as ml
from moe_lab.evaluation.measure import Setting
from moe_lab.kernels.layout import LAYER, SEED, TOKEN
from moe_lab.kernels.noise import noise
from moe_lab.pocket.corpus import WORLDS
from moe_lab.routing import best
from reproduction.bench import Bench, Values, row
from reproduction.claims import HOLDS, NOT, PART, Claim, judged
from reproduction.words import by_world, change, interval, table

STEEPER = 10
"""Times by which the head must hurt more than the tail."""
CHEAP = 0.01
"""An increase of perplexity that is little, for one rank swapped in every layer."""
FIRST_CHEAP = 3
"""Rank, counted from 1, from which on the paper finds swaps cheap."""


@ml.routing.policy(place=ml.Parameter(0, 0, 63, unit="ranks", doc="who is left out, 0 the best", integer=True))
def without(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
    """The original choice less the expert at one rank; a choice of one stays."""
    scores[:] = -np.inf
    order = best(logits, K)
    for i in range(len(order)):
        if i != int(params[0]) or len(order) == 1:
            scores[order[i]] = logits[order[i]]


@ml.routing.policy(place=ml.Parameter(0, 0, 63, unit="ranks", doc="who is exchanged, 0 the best", integer=True))
def exchanged(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
    """The original choice with the expert at one rank replaced by any one outside of it, drawn anew for each token."""
    scores[:] = -np.inf
    order = best(logits, K)
    others = np.ones(len(logits), np.bool_)
    for i in range(len(order)):
        others[order[i]] = False
        if i != int(params[0]):
            scores[order[i]] = np.inf
    drawn, most = -1, -1.0
    for e in range(len(logits)):
        if others[e] and logits[e] > -np.inf:
            lot = noise(int(state[SEED]), int(state[LAYER]), int(state[TOKEN]), e)
            if lot > most:
                drawn, most = e, lot
    if drawn >= 0:
        scores[drawn] = np.inf
    elif int(params[0]) < len(order):       # nobody is outside of the choice
        scores[order[int(params[0])]] = np.inf


def settings(bench: Bench, world: str) -> list[Setting]:
    """Every rank left out, and every rank exchanged."""
    K = bench.engine.spec.top_k
    places = (0, K - 1) if bench.scale.quick else range(K)
    return [bench.setting(kind(place=place)) for kind in (without, exchanged) for place in places]


def measure(bench: Bench) -> Values:
    """A row for each: ``rank`` from 1, ``how`` is drop or swap."""
    rows = []
    for world in WORLDS:
        for setting in settings(bench, world):
            found = row(world, bench.point(world, setting))
            rows.append({**found, "rank": int(found["strength"]) + 1,
                         "how": "drop" if isinstance(setting.routing, without) else "swap"})
    return {"points": rows}


def _increase(values: Values, world: str, how: str) -> dict[int, float]:
    return {r["rank"]: r["increase"] for r in values["points"] if (r["world"], r["how"]) == (world, how)}


def claims(values: Values) -> list[Claim]:
    """Head and tail."""
    head, tail, swaps = {}, {}, {}
    for world in WORLDS:
        drop, swap = (_increase(values, world, how) for how in ("drop", "swap"))
        head[world], tail[world] = drop[1], drop[max(drop)]
        swaps[world] = max(value for rank, value in swap.items() if rank >= min(FIRST_CHEAP, max(swap)))
    return [
        judged("section 1", "the head of the ranking is critical, the tail is not",
               f"leaving out rank 1 costs at least {STEEPER} times as much as leaving out the last rank",
               [head[w] >= STEEPER * max(tail[w], 0) for w in WORLDS],
               by_world({w: f"{change(head[w], 0)} and {change(tail[w])}" for w in WORLDS}),
               {HOLDS: "the first rank carries most of the gate mass",
                PART: "in one world the gate mass is spread more evenly", NOT: "the gate mass is spread evenly here"}),
        judged("section 1", "in fine-grained models swapping rank 3 and beyond costs little",
               f"each of the ranks from {FIRST_CHEAP} on, exchanged alone for a random expert: at most "
               f"{change(CHEAP, 0)}",
               [swaps[w] <= CHEAP for w in WORLDS], by_world({w: f"at most {change(swaps[w])}" for w in WORLDS}),
               {HOLDS: "an expert at those ranks adds little, and a random one in its place disturbs little",
                PART: "the cost still falls from rank to rank, and one world is over the line at the first of them",
                NOT: "the cost falls from rank to rank, but is over the line at the first of them; a random expert is "
                     "the worst case, residents are better"}),
    ]


def section(values: Values) -> str:
    """The table by rank."""
    ranks = sorted({r["rank"] for r in values["points"]})
    found = {(r["world"], r["how"], r["rank"]): r for r in values["points"]}
    rows = [[str(rank), *(interval(found[w, how, rank]) for w in WORLDS for how in ("drop", "swap"))] for rank in ranks]
    head = ["rank", *(f"{w}: {how}" for w in WORLDS for how in ("left out", "exchanged"))]
    return f"""## Sensitivity by rank

![Perplexity with one rank disturbed](pictures/paper-ranks.png)

The choice is disturbed at one rank, in every layer and for every token: the expert is left out, or exchanged for a
random one outside of the original choice. Change of perplexity:

{table(head, rows)}
"""
