"""How many experts must be kept whatever the cache holds: J.

Knows Cache-Prior with several heads at two penalties.
"""

from __future__ import annotations

from moe_lab.evaluation.measure import Setting
from moe_lab.pocket.corpus import WORLDS
from moe_lab.routing import CachePrior
from reproduction import curves
from reproduction.bench import Bench, Values, row
from reproduction.claims import HOLDS, NOT, PART, Claim, judged
from reproduction.words import by_world, interval, percent, table

PENALTIES = (0.2, 1.0)


def settings(bench: Bench, world: str) -> list[Setting]:
    """Every head at a usual and at the full penalty."""
    K = bench.engine.spec.top_k
    heads = (0, 1, 2) if bench.scale.quick else sorted({0, 1, 2, 3, 4, min(6, K), K})
    return [bench.setting(CachePrior(penalty=p, keep_top=j)) for p in PENALTIES for j in heads]


def measure(bench: Bench) -> Values:
    """A row for each."""
    return {"points": [row(w, bench.point(w, s)) for w in WORLDS for s in settings(bench, w)]}


def claims(values: Values, main: Values) -> list[Claim]:
    """Which of one and two serves better; ``main`` are the values of ``curves``."""
    best = {w: [curves.best(main, w, main["half"], rule="cache-prior", keep_top=j) for j in (1, 2)] for w in WORLDS}
    found = {w: [r["miss_rate"] if r else 1.0 for r in rows] for w, rows in best.items()}
    return [judged(
        "section 1", "fine-grained models want two kept experts (J = 2), coarse ones one",
        f"half of the experts resident, at most {percent(curves.ALLOWED, 0)} of perplexity: J = 2 misses no more than "
        "J = 1", [two <= one for one, two in found.values()],
        by_world({w: f"{percent(one)} with J = 1, {percent(two)} with J = 2" for w, (one, two) in found.items()}),
        {HOLDS: "the second rank is worth its reads",
         PART: "the second rank is worth its reads in one world only; it caps the price in both",
         NOT: "at this price the bonus alone keeps the second rank where it matters; a fixed J = 2 also reads it where "
              "it does not. It does cap the price at high penalties, see the table"})]


def section(values: Values) -> str:
    """A table by J."""
    found = {(r["world"], r["strength"], r["keep_top"]): r for r in values["points"]}
    rows = [[f"{j}", *(cell for p in PENALTIES for w in WORLDS for cell in (
        interval(found[w, p, j]), percent(found[w, p, j]["miss_rate"])))]
            for j in sorted({r["keep_top"] for r in values["points"]})]
    head = ["J", *(f"{w}, penalty {p:g}: {name}" for p in PENALTIES for w in WORLDS
                   for name in ("perplexity", "misses"))]
    return f"""## How many are kept: J

Cache-Prior with half of the experts resident; the J best experts of a token are used whatever is resident.

{table(head, rows)}
"""
