"""The floor of forced misses, against what is reached; and how local the ranks are.

On logits without structure the kept head is not resident with probability 1 - C / E, whatever the cache does, so
misses cannot fall below J (1 - C / E) / K. Knows original routes and the rows of ``curves`` and ``head``.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.replay import replay_layer
from moe_lab.kernels.residency import LayerState
from moe_lab.pocket.corpus import WORLDS
from reproduction.bench import Bench, Values, plain
from reproduction.claims import HOLDS, NOT, PART, Claim, judged
from reproduction.words import by_world, percent, table


def measure(bench: Bench) -> Values:
    """Miss rate of LRU by rank under the original routing, half of the experts: (K,) for each world."""
    return {"by_rank": {world: [plain(x) for x in _by_rank(bench, world)] for world in WORLDS}}


def _by_rank(bench: Bench, world: str) -> np.ndarray:
    spec, trace = bench.engine.spec, bench.trace(world)
    setting = bench.setting()
    missed, tokens = np.zeros(spec.top_k), 0
    for layer in range(trace.L):
        for ids in bench.by_window(trace, layer):
            state = LayerState.new(spec.experts, spec.top_k, setting.slots, setting.routing, setting.eviction, layer)
            missed += (~replay_layer(ids, None, state)).sum(0)
            tokens += len(ids)
    rates: np.ndarray = missed / tokens
    return rates


def floors(values: Values, main: Values, head: Values) -> list[Values]:
    """For each size and head at the full penalty: the floor, the rate reached, and their quotient."""
    rows = []
    points = {(r["world"], r["slots"], r["keep_top"]): r for r in (*main["points"], *head["points"])
              if r["rule"] == "cache-prior" and r["strength"] == 1 and r["keep_top"]}
    for (world, slots, keep_top), r in sorted(points.items()):
        forced = keep_top * (1 - slots / main["experts"]) / main["top_k"]
        rows.append({"world": world, "slots": slots, "keep_top": keep_top, "floor": forced, "reached": r["miss_rate"],
                     "cold": slots / (main["window"] * main["top_k"])})
    return rows


def claims(values: Values, main: Values, head: Values) -> list[Claim]:
    """Below the floor of structureless logits."""
    rows = [r for r in floors(values, main, head) if r["slots"] == main["half"] and r["keep_top"] == 1]
    return [judged(
        "section 6", "real models lie below the floor J (1 - C/E) / K: their head ranks are local or skewed",
        "half of the experts resident, penalty 1, J = 1: fewer misses than the floor",
        [r["reached"] < r["floor"] for r in rows],
        by_world({r["world"]: f"{percent(r['reached'])} against a floor of {percent(r['floor'])}" for r in rows}),
        {HOLDS: "the best expert of a token is often one that was used a moment ago",
         PART: "in one world the best expert comes back sooner",
         NOT: "the best expert of a token is no more local than chance, or the cold starts of the windows hide it"})]


def section(values: Values, main: Values, head: Values) -> str:
    """Floors and ranks."""
    rows = [[f"{r['slots']}, J {r['keep_top']}, {r['world']}", percent(r["floor"], 2), percent(r["reached"], 2),
             f"{r['reached'] / r['floor']:.2f}" if r["floor"] else "n/a", percent(r["cold"], 2)]
            for r in floors(values, main, head)]
    ranks = [[world, *(percent(x) for x in rates)] for world, rates in values["by_rank"].items()]
    return f"""## The floor of forced misses

At penalty 1 only the kept head can miss. If its rank knew nothing of the past it would miss with probability 1 - C / E,
which makes J (1 - C / E) / K of all uses. *Cold*: the
share that goes into filling all slots once a window; a cache that is never full has less.

{table(["slots, J, world", "floor", "reached", "reached / floor", "cold"], rows)}

How local each rank is: misses of LRU under the original routing, half of the experts resident, by rank.

{table(["world", *(str(rank + 1) for rank in range(main["top_k"]))], ranks)}
"""
