"""How long an expert stays, and Little's law as a check of the counting.

Knows the rows of ``curves``; measures nothing of its own.
"""

from __future__ import annotations

from moe_lab.pocket.corpus import WORLDS
from reproduction import curves
from reproduction.bench import Values
from reproduction.claims import HOLDS, NOT, PART, Claim, judged
from reproduction.words import by_world, percent, table

LONGER = 2
"""The paper's experts stay 2.2 to 4 times as long."""


def claims(main: Values) -> list[Claim]:
    """Longer stays."""
    found = {}
    for world in WORLDS:
        before = curves.original(main, world, main["half"])
        after = curves.best(main, world, main["half"], rule="cache-prior")
        found[world] = (before["lifetime"], after["lifetime"] if after else 0.0)
    return [judged(
        "section 4", "experts stay two to four times as long", f"half of the experts resident, at most "
        f"{percent(curves.ALLOWED, 0)} of perplexity: the mean stay is at least {LONGER} times that under LRU",
        [after >= LONGER * before for before, after in found.values()],
        by_world({w: f"{before:.0f} and {after:.0f} tokens" for w, (before, after) in found.items()}),
        {HOLDS: "fewer loads into as many slots are longer stays, by Little's law",
         PART: "fewer loads are longer stays, and one world saves fewer", NOT: "the misses fall by less than half"})]


def section(main: Values) -> str:
    """Stays before and after, with the check."""
    rows = []
    for slots in main["sizes"]:
        for world in WORLDS:
            found = curves.best(main, world, slots, rule="cache-prior")
            for name, r in (("original", curves.original(main, world, slots)), ("Cache-Prior", found)):
                if r is not None:
                    law = slots * main["layers"] / r["loads_per_token"]
                    rows.append([f"{slots}, {world}, {name}", percent(r["miss_rate"]), f"{r['lifetime']:.1f}",
                                 f"{law:.1f}", f"{r['little_check']:.3f}"])
    least = min(r["little_check"] for r in main["points"])
    return f"""## Lifetimes

Mean number of tokens an expert stays resident, cut at the window's end; Cache-Prior at its best setting for at most
{percent(curves.ALLOWED, 0)} of perplexity. Little's law makes it slots / (loads a token); the check is what was counted
over that. It is the mean share of the slots that is filled, so what it lacks to 1 is the empty start of each window;
the least over all {len(main["points"])} points is {least:.3f}.

{table(["slots, world, routing", "misses", "lifetime", "by Little's law", "check"], rows)}
"""
