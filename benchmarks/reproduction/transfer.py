"""Does a penalty chosen on one world serve the other?

Knows the rows of ``curves``; measures nothing of its own.
"""

from __future__ import annotations

from moe_lab.pocket.corpus import WORLDS
from reproduction import curves
from reproduction.bench import Values
from reproduction.claims import HOLDS, NOT, PART, Claim, judged
from reproduction.words import by_world, change, percent, table

SLACK = 0.005
"""By how much perplexity may exceed what was allowed, where the penalty was chosen elsewhere."""
AS_GOOD = 0.9
"""Share of the misses saved by the world's own choice that a choice made elsewhere must save."""


def pairs(main: Values) -> list[Values]:
    """For each size and world: its own best Cache-Prior, and the other world's best one applied to it."""
    rows = []
    for slots in main["sizes"]:
        for world in WORLDS:
            other = next(w for w in WORLDS if w != world)
            own, chosen = (curves.best(main, w, slots, rule="cache-prior") for w in (world, other))
            if own is None or chosen is None:
                continue
            applied = next(r for r in main["points"] if r["world"] == world
                           and all(r[key] == chosen[key] for key in ("slots", "rule", "strength", "keep_top")))
            rows.append({"world": world, "slots": slots, "own": own, "applied": applied})
    return rows


def claims(main: Values) -> list[Claim]:
    """At half of the experts."""
    rows = [p for p in pairs(main) if p["slots"] == main["half"]]
    saved = [[curves.saved(main, p[whose]) or 0.0 for whose in ("own", "applied")] for p in rows]
    good = [p["applied"]["increase"] <= curves.ALLOWED + SLACK and applied >= AS_GOOD * own
            for p, (own, applied) in zip(rows, saved, strict=True)]
    return [judged(
        "section 4, ablation", "a penalty chosen on one data set serves another",
        f"half of the experts resident, chosen for {percent(curves.ALLOWED, 0)} in the other world: at most "
        f"{percent(curves.ALLOWED + SLACK)} here, and {percent(AS_GOOD, 0)} of what the own choice saves", good,
        by_world({p["world"]: f"{change(p['applied']['increase'])}, {percent(applied, 0)} saved (own choice "
                              f"{percent(own, 0)})" for p, (own, applied) in zip(rows, saved, strict=True)}),
        {HOLDS: "the penalty is in units of the logits' own range, which the two worlds share nearly",
         PART: "one world is the more delicate: a penalty chosen on it is safe for both, not the other way round",
         NOT: "the two worlds differ in how much they bear; choose on the text that matters"})]


def section(main: Values) -> str:
    """A table by size and world."""
    rows = [[f"{p['slots']}, {p['world']}", *(cell for r in (p["own"], p["applied"]) for cell in (
        f"{r['strength']:g}, J {r['keep_top']}", change(r["increase"]), percent(r["miss_rate"]),
        percent(curves.saved(main, r), 0)))] for p in pairs(main)]
    head = [f"{name}: {what}" for name in ("own", "the other world's") for what in (
        "penalty", "perplexity", "misses", "saved")]
    return f"""## Transfer of the penalty

The best Cache-Prior for at most {percent(curves.ALLOWED, 0)} of perplexity, chosen on each world and applied to the
other one. (The range D transfers too: see the section before.)

{table(["slots, world", *head], rows)}
"""
