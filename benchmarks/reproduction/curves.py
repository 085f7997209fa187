"""The main result: perplexity against misses, for every rule and baseline, at four sizes of the cache.

Knows which settings are tried and how the best is found among them.
"""

from __future__ import annotations

from typing import Any

import moe_lab as ml
from moe_lab.evaluation.measure import Setting
from moe_lab.pocket.corpus import WORLDS
from moe_lab.routing import (
    BoundedRegret,
    CachePrior,
    Cecar,
    CumulativeThreshold,
    DropCold,
    MaxRank,
    Pruned,
    RoutingPolicy,
    Swap,
    ToleranceSwap,
)
from reproduction.bench import Bench, Values, row
from reproduction.claims import HOLDS, NOT, PART, Claim, judged
from reproduction.words import by_world, change, folded, interval, percent, table

ALLOWED = 0.01
"""Increase of perplexity at which rules are compared."""
PAPER_RULES = ("cache-prior", "max-rank", "cumulative-threshold", "pruned", "swap", "swap-random")
TARGETS = ((0.5, 0.01, 0.75), (0.25, 0.015, 0.50), (0.75, 0.01, 0.75))
"""The project's own: share of the experts resident, perplexity allowed, share of LRU's misses to be saved."""
MUCH = 0.10
"""Share of the uses that must have moved before tolerance says anything."""
STEEP = 0.10
"""An increase of perplexity from which on quality counts as broken."""


def rules(bench: Bench, slots: int) -> list[RoutingPolicy]:
    """All that is tried at one size; most at half of the experts."""
    if bench.scale.quick:
        return [CachePrior(penalty=0.2), CachePrior(penalty=1), MaxRank(window=12), CumulativeThreshold(mass=0.7),
                Pruned(dropped=2), Swap(), Swap(at_random=1), DropCold()] if slots == bench.half else [
                CachePrior(penalty=0.2), MaxRank(window=12)]
    if slots == bench.half:
        return [
            *(CachePrior(penalty=p, keep_top=1) for p in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.8, 1)),
            *(CachePrior(penalty=p, keep_top=2) for p in (0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1)),
            *(MaxRank(window=w) for w in (10, 12, 16, 24, 40)),
            *(CumulativeThreshold(mass=p) for p in (0.5, 0.6, 0.7, 0.8, 0.9)),
            *(Pruned(dropped=n) for n in (1, 2, 3, 4)),
            *(Swap(keep_top=j, at_random=a) for a in (0, 1) for j in (1, 2, 4, 6)),
            *(DropCold(share=s) for s in (0.5, 0.75, 1)),
            *(ToleranceSwap(tolerance=t) for t in (0.5, 1)),
            *(BoundedRegret(regret=r) for r in (0.03, 0.1)),
            *(Cecar(strength=s) for s in (0.5, 1)),
        ]
    tight = slots == bench.engine.spec.top_k
    return [
        *(CachePrior(penalty=p, keep_top=1) for p in (
            (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 1) if tight else (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1))),
        *(CachePrior(penalty=p, keep_top=2) for p in (0.15, 0.2, 0.3)),
        *(MaxRank(window=w) for w in (10, 12, 16, 24)),
        *(CumulativeThreshold(mass=p) for p in (0.5, 0.6, 0.7, 0.8)),
        *(Pruned(dropped=n) for n in (1, 2)),
        Swap(keep_top=1), Swap(keep_top=4), Swap(keep_top=4, at_random=1),
        DropCold(share=0.5), DropCold(share=1),
    ]


def settings(bench: Bench, world: str) -> list[Setting]:
    """The original routing and every rule, at every size, under LRU."""
    return [bench.setting(policy, slots) for slots in bench.sizes for policy in (None, *rules(bench, slots))]


def measure(bench: Bench) -> Values:
    """A row for every world and setting."""
    rows = [row(world, bench.point(world, setting)) for world in WORLDS for setting in settings(bench, world)]
    spec = bench.engine.spec
    return {"sizes": bench.sizes, "half": bench.half, "experts": spec.experts, "layers": spec.L, "top_k": spec.top_k,
            "window": bench.scale.window, "points": rows}


# --- looking things up ---------------------------------------------------------------------------------


def original(values: Values, world: str, slots: int) -> Values:
    """The row of the original routing under LRU."""
    return next(r for r in values["points"] if (r["world"], r["slots"], r["rule"]) == (world, slots, "original"))


def best(values: Values, world: str, slots: int, allowed: float = ALLOWED, rule: str | None = None,
         keep_top: int | None = None) -> Values | None:
    """The row with the fewest misses among those that cost at most ``allowed``; None where none does."""
    rows = [r for r in values["points"] if (r["world"], r["slots"]) == (world, slots) and r["rule"] != "original"
            and r["increase"] <= allowed and (rule is None or r["rule"] == rule)
            and (keep_top is None or r["keep_top"] == keep_top)]
    return min(rows, key=lambda r: r["miss_rate"], default=None)


def saved(values: Values, found: Values | None) -> float | None:
    """Share of LRU's misses under the original routing that a row saves."""
    if found is None:
        return None
    return 1 - found["miss_rate"] / original(values, found["world"], found["slots"])["miss_rate"]


def best_policy(found: Values) -> RoutingPolicy:
    """The Cache-Prior of a row."""
    return ml.routing.CachePrior(penalty=found["strength"], keep_top=found["keep_top"])


# --- verdicts ------------------------------------------------------------------------------------------


def claims(values: Values) -> list[Claim]:
    """What the main result says of the paper's claims."""
    half = values["half"]
    at = {w: best(values, w, half, rule="cache-prior") for w in WORLDS}
    cut = {w: saved(values, found) or 0.0 for w, found in at.items()}
    return [_fewer(cut), _price(values), _belady(values, at), _tolerance(at), _best_rule(values), _breaks(values)]


def _fewer(cut: dict[str, float]) -> Claim:
    return judged(
        "section 1", "misses fall by more than half", f"half of the experts resident, at most {percent(ALLOWED, 0)} of "
        "perplexity: Cache-Prior saves over 50% of LRU's misses", [c > 0.5 for c in cut.values()],
        by_world({w: f"-{percent(c, 0)}" for w, c in cut.items()}),
        {HOLDS: "the tail of the ranking is nearly flat, so a resident expert is often as good as the chosen one",
         PART: "one world's router insists more on its choice than the other's",
         NOT: "this model's experts cannot stand in for each other at that price"})


def _price(values: Values) -> Claim:
    found = {}
    for world in WORLDS:
        rows = [r for r in values["points"] if (r["world"], r["slots"], r["rule"]) == (
            world, values["half"], "cache-prior") and (saved(values, r) or 0) >= 0.5]
        found[world] = min(rows, key=lambda r: r["increase"], default=None)
    return judged(
        "section 1", "perplexity rises by 0.1 to 3 %", "half of the experts resident, the cheapest Cache-Prior that "
        "halves the misses costs at most 3%", [r is not None and r["increase"] <= 0.03 for r in found.values()],
        by_world({w: "none halves them" if r is None else f"{interval(r)} at penalty {r['strength']:g}"
                  for w, r in found.items()}),
        {HOLDS: "what is swapped has little gate mass, see the share of mass kept in the full tables",
         PART: "in one world the swapped experts carry more of the weight",
         NOT: "the swapped experts carry too much of the weight in this model"})


def _belady(values: Values, at: dict[str, Values | None]) -> Claim:
    rows = {w: [] if r is None else [r] for w, r in at.items()}
    below = {w: bool(r) and r[0]["miss_rate"] < r[0]["bound"] for w, r in rows.items()}
    return judged(
        "section 1", "misses fall below Belady's optimum for the fixed routing", f"half of the experts resident, at "
        f"most {percent(ALLOWED, 0)} of perplexity: below the bound on the original routes", below.values(),
        by_world({w: f"{percent(r[0]['miss_rate'])} against a bound of {percent(r[0]['bound'])}" if r else "none"
                  for w, r in rows.items()}),
        {HOLDS: "the bound holds for routes that stay as they are, and these do not stay",
         PART: "in one world the price allows too few swaps to pass the bound",
         NOT: "the price allows too few swaps to pass the bound"})


def _tolerance(at: dict[str, Values | None]) -> Claim:
    share = {w: r["swapped_share"] if r else 0.0 for w, r in at.items()}
    return judged(
        "section 1", "MoE models tolerate careful changes of the expert choice", f"half of the experts resident: over "
        f"{percent(MUCH, 0)} of the uses go to another expert for at most {percent(ALLOWED, 0)} of perplexity",
        [s > MUCH for s in share.values()], by_world({w: f"{percent(s, 0)} swapped" for w, s in share.items()}),
        {HOLDS: "training balanced the load over many experts, which leaves some that know the same",
         PART: "one world's experts are more particular", NOT: "this model's experts are too particular"})


def _best_rule(values: Values) -> Claim:
    winners: dict[str, list[Values]] = {}
    for world in WORLDS:
        found = [b for rule in PAPER_RULES if (b := best(values, world, values["half"], rule=rule)) is not None]
        winners[world] = sorted(found, key=lambda r: r["miss_rate"])[:2]
    return judged(
        "section 2", "Cache-Prior is the best of the rules and baselines of the paper", "half of the experts resident, "
        f"at most {percent(ALLOWED, 0)} of perplexity: the fewest misses",
        [bool(w) and w[0]["rule"] == "cache-prior" for w in winners.values()],
        by_world({w: " before ".join(f"{r['rule']} {percent(r['miss_rate'])}" for r in two) or "none"
                  for w, two in winners.items()}),
        {HOLDS: "it weighs how much the router wants an expert; the others cut at a rank or a mass",
         PART: "which rule wins depends on the text", NOT: "another rule saves more here, see the table"})


def _breaks(values: Values) -> Claim:
    rows = {(w, s): max((r for r in values["points"] if (r["world"], r["slots"], r["rule"], r["keep_top"]) == (
        w, s, "cache-prior", 1)), key=lambda r: r["strength"]) for w in WORLDS for s in values["sizes"]}
    words = "; ".join(f"{s} slots: " + by_world({w: change(rows[w, s]["increase"], 1) for w in WORLDS})
                      for s in values["sizes"])
    return judged(
        "section 2", "quality breaks beyond a penalty of about 0.8", f"at penalty 1 with one expert kept, perplexity "
        f"rises by over {percent(STEEP, 0)}; by size of the cache",
        [all(rows[w, s]["increase"] > STEEP for w in WORLDS) for s in values["sizes"]], words,
        {HOLDS: "with only the head kept the cache decides everything else, and it knows nothing of the text",
         PART: "a large cache holds good experts whatever happens; a small one freezes on bad ones",
         NOT: "the kept head carries most of the gate mass here, and the weights stay those of the original logits"})


def targets(values: Values) -> list[Values]:
    """The project's own figures to reach, with what was reached by any rule."""
    rows = []
    for share, allowed, wanted in TARGETS:
        slots = round(share * values["experts"])
        for world in WORLDS:
            found = best(values, world, slots, allowed)
            cut = saved(values, found)
            enough = [r["increase"] for r in values["points"] if (r["world"], r["slots"]) == (world, slots)
                      and r["rule"] != "original" and (saved(values, r) or 0) >= wanted]
            rows.append({"slots": slots, "world": world, "allowed": allowed, "wanted": wanted, "saved": cut,
                         "row": found, "price": min(enough, default=None),
                         "reached": cut is not None and cut >= wanted})
    return rows


# --- words ---------------------------------------------------------------------------------------------


def section(values: Values) -> str:
    """The best of every rule at every size, then all points."""
    parts = ["## Perplexity against misses\n", "![Perplexity against miss rate](pictures/paper-curves.png)\n",
             f"For each rule the setting with the fewest misses for at most {percent(ALLOWED, 0)} of perplexity. "
             "*Fewer* is the share of LRU's misses that it saves. The interval is one of 95 %, paired over windows.\n"]
    for slots in values["sizes"]:
        base = {w: original(values, w, slots) for w in WORLDS}
        title = (f"**{slots} of {values['experts']} experts resident.** Original routing, LRU: "
                 + "; ".join(f"{w}: misses {percent(b['miss_rate'])}, Belady's bound {percent(b['bound'])}"
                             for w, b in base.items()) + ".")
        parts.append(f"{title}\n\n{_best_table(values, slots)}\n")
    body = "\n\n".join(f"**{slots} slots**\n\n{_full_table(values, slots)}" for slots in values["sizes"])
    parts.append(folded("All points", body) + "\n")
    return "\n".join(parts)


def _best_table(values: Values, slots: int) -> str:
    names = dict.fromkeys(r["rule"] for r in values["points"] if r["slots"] == slots and r["rule"] != "original")
    rows = []
    for rule in names:
        cells = [rule]
        for world in WORLDS:
            found = best(values, world, slots, rule=rule)
            cells += (["none", "", "", ""] if found is None else [
                _setting(found), interval(found), percent(found["miss_rate"]), percent(saved(values, found), 0)])
        rows.append(cells)
    return table(["rule", *(f"{w}: {name}" for w in WORLDS for name in ("setting", "perplexity", "misses", "fewer"))],
                 rows)


def _full_table(values: Values, slots: int) -> str:
    found: dict[str, dict[str, Values]] = {}
    for r in values["points"]:
        if r["slots"] == slots:
            found.setdefault(f"{r['rule']} {_setting(r)}".strip(), {})[r["world"]] = r
    rows = [[name, *(cell for w in WORLDS for cell in (
        interval(both[w]), percent(both[w]["miss_rate"]), percent(both[w]["swapped_share"], 0),
        f"{both[w]['mass_kept']:.3f}"))] for name, both in found.items()]
    return table(["rule", *(f"{w}: {name}" for w in WORLDS for name in ("perplexity", "misses", "swapped", "mass"))],
                 rows)


def words(found: Values) -> str:
    """A row's Cache-Prior in words.

    >>> words({"rule": "cache-prior", "strength": 0.2, "keep_top": 1})
    'penalty 0.2, J 1'
    """
    return f"penalty {_setting(found)}"


def _setting(found: Values) -> str:
    if found["strength"] is None:
        return ""
    head = found["keep_top"]
    if found["rule"].startswith("swap"):
        return f"J {head}"
    return f"{found['strength']:g}" + (f", J {head}" if head is not None else "")


def targets_section(values: Values) -> str:
    """The table of the project's own targets."""
    rows = []
    for t in targets(values):
        r: Any = t["row"]
        rows.append([f"{t['slots']} of {values['experts']}, {t['world']}",
                     f"{percent(t['wanted'], 0)} for {percent(t['allowed'], 1)}",
                     "none" if r is None else f"{r['rule']} {_setting(r)}", percent(t["saved"], 0),
                     "" if r is None else interval(r),
                     "" if r is None else ("below" if r["miss_rate"] < r["bound"] else "above"),
                     "none does" if t["price"] is None else change(t["price"]),
                     "reached" if t["reached"] else "missed"])
    head = ["slots, world", "target", "best setting", "saved", "perplexity", "Belady's bound",
            "least perplexity for so many", ""]
    missed = ("" if all(t["reached"] for t in targets(values)) else
              "\nWhere one is missed, the last column but one says what it would have cost on this model; the floor "
              "of forced misses and the sensitivity by rank, below, say what stands in the way. Finer experts and a "
              "weaker balance loss make both milder.\n")
    return ("## The project's own targets\n\nMisses to be saved against LRU with the original routing, for at most so\n"
            f"much perplexity, by any rule.\n\n{table(head, rows)}\n{missed}")
