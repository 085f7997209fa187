"""Eviction policies, under the original routing and under Cache-Prior; and how local the routes are at all.

Knows recorded routes and the zoo. The learned policy is trained on the other world's routes.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from moe_lab.evaluation.measure import Setting
from moe_lab.eviction import EVICTION, LRU, EvictionPolicy, LearnedEviction
from moe_lab.pocket.corpus import WORLDS
from moe_lab.pocket.measure import Locality
from moe_lab.routing import CachePrior
from reproduction.bench import Bench, Values, row
from reproduction.claims import HOLDS, NOT, PART, Claim, judged
from reproduction.words import by_world, change, percent, table

PENALTY = 0.2
WITH_PRIOR = ("lru", "fifo", "lfu", "aged-lfu", "arc", "mrs", "least-stale")
"""Those that take a pass each: they are tried under Cache-Prior."""
MODEST = 0.25
"""Share of the misses in random order that LRU may save where locality is modest."""


def _policies(bench: Bench, world: str) -> list[EvictionPolicy]:
    """All that recorded routes are enough for."""
    other = next(w for w in WORLDS if w != world)
    fitted = [] if bench.scale.quick else [LearnedEviction.fit(bench.trace(other))]
    return [*(kind() for name, kind in EVICTION.items() if name != "learned" and "logits" not in kind.needs), *fitted]


def settings(bench: Bench, world: str) -> list[Setting]:
    """The zoo under the original routing at every size, and some of it under Cache-Prior at half."""
    names = WITH_PRIOR[:2] if bench.scale.quick else WITH_PRIOR
    return [*(bench.setting(slots=slots, eviction=policy) for policy in _policies(bench, world)
              for slots in bench.sizes),
            *(bench.setting(CachePrior(penalty=PENALTY), eviction=EVICTION[name]()) for name in names)]


def measure(bench: Bench) -> Values:
    """Rows, and the locality of the original routes."""
    rows = []
    for world in WORLDS:
        for setting in settings(bench, world):
            rows.append({**row(world, bench.point(world, setting)), "eviction": setting.eviction.name})
    E = bench.engine.spec.experts
    local = {w: asdict(Locality.of(bench.trace(w).ids, E)) for w in WORLDS}
    return {"points": rows, "locality": local}


def _misses(values: Values, world: str, slots: int, rule: str) -> dict[str, Values]:
    return {r["eviction"]: r for r in values["points"]
            if (r["world"], r["slots"], r["rule"]) == (world, slots, rule)}


def claims(values: Values, main: Values) -> list[Claim]:
    """Locality, and eviction beside routing."""
    local = {w: 1 - x["lru"] / x["shuffled_lru"] for w, x in values["locality"].items()}
    won, cut = {}, {}
    for world in WORLDS:
        found = _misses(values, world, main["half"], "original")
        won[world] = 1 - min(r["miss_rate"] for r in found.values()) / found[LRU().name]["miss_rate"]
        prior = _misses(values, world, main["half"], "cache-prior")[LRU().name]
        cut[world] = 1 - prior["miss_rate"] / found[LRU().name]["miss_rate"]
    return [
        judged("section 1", "plain LRU alone gains little: temporal locality is modest",
               f"half of the experts resident: LRU saves at most {percent(MODEST, 0)} of the misses that the same "
               "tokens in random order have", [x <= MODEST for x in local.values()],
               by_world({w: f"{percent(x, 0)} fewer misses than in random order" for w, x in local.items()}),
               {HOLDS: "a token says little of which experts the next one wants",
                PART: "one world's texts stay longer with one matter",
                NOT: "these texts repeat themselves more than general ones, source code above all, and the balance "
                     "loss was weak; Belady's bound shows that a good part is still left"}),
        judged("section 4, ablation", "routing matters far more than eviction",
               f"half of the experts resident: the best live eviction saves less than half of what Cache-Prior at "
               f"{PENALTY:g} saves", [2 * won[w] < cut[w] for w in WORLDS],
               by_world({w: f"{percent(won[w], 0)} by eviction, {percent(cut[w], 0)} by routing" for w in WORLDS}),
               {HOLDS: "eviction can only choose who leaves; routing also chooses who is asked for",
                PART: "one world's routes are predictable enough for eviction to gain more",
                NOT: "these routes are predictable enough for eviction to gain much"}),
    ]


def section(values: Values, main: Values) -> str:
    """Tables of misses."""
    by = partial(_misses, values)
    names = list(dict.fromkeys(r["eviction"] for r in values["points"] if r["rule"] == "original"))
    rows = [[name, *(percent(by(w, s, "original")[name]["miss_rate"]) for s in main["sizes"] for w in WORLDS)]
            for name in names]
    rows.append(["Belady's bound", *(percent(by(w, s, "original")[names[0]]["bound"]) for s in main["sizes"]
                                     for w in WORLDS)])
    prior = [[name, *(cell for w in WORLDS for r in [by(w, main["half"], "cache-prior")[name]]
                      for cell in (change(r["increase"]), percent(r["miss_rate"])))]
             for name in by(WORLDS[0], main["half"], "cache-prior")]
    local = [[w, percent(x["lru"]), percent(x["shuffled_lru"]), percent(x["belady"])]
             for w, x in values["locality"].items()]
    return f"""## Eviction, and how local the routes are

Misses under the original routing. The learned policy was trained on the other world's routes.

{table(["eviction", *(f"{s} slots, {w}" for s in main["sizes"] for w in WORLDS)], rows)}

Under Cache-Prior (penalty {PENALTY:g}, J 1), half of the experts resident:

{table(["eviction", *(f"{w}: {name}" for w in WORLDS for name in ("perplexity", "misses"))], prior)}

Locality at half of the experts: the same tokens, in their order and in random order.

{table(["world", "misses, LRU", "in random order", "Belady's bound"], local)}
"""
