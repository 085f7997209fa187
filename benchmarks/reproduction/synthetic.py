"""A check without a model: independent normal logits through one layer, beside the digest's table (PAPER section 6).

Knows the walk. Every run is drawn anew from the seed and takes a second.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moe_lab.eviction import LRU
from moe_lab.kernels.belady import belady
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walk import walk
from moe_lab.kernels.walked import Walked
from moe_lab.routing import CachePrior, CumulativeThreshold, MaxRank, Original, RoutingPolicy
from reproduction.bench import Bench, Values, plain
from reproduction.claims import HOLDS, NOT, PART, Claim, judged
from reproduction.words import table

SEED = 20241129
NEAR = 0.015
"""Another draw of the same logits may differ by so much."""
SHAPES = ((32, 4, 16, 1), (64, 8, 32, 2), (8, 2, 4, 1))


class Line(NamedTuple):
    """A row of the digest's table: which shape, which rule, its figures there."""

    shape: int
    policy: RoutingPolicy
    miss: float
    agreement: float | None = None
    mass: float | None = None


def lines() -> list[Line]:
    """The digest's table."""
    J = [shape[3] for shape in SHAPES]

    def prior(shape: int, **misses: float) -> list[Line]:
        return [Line(shape, CachePrior(penalty=float(p.replace("p", "0.")) if p != "one" else 1, keep_top=J[shape]), m)
                for p, m in misses.items()]

    full = [(0.05, 0.420, 0.920, 0.995), (0.1, 0.338, 0.836, 0.980), (0.25, 0.175, 0.673, 0.912),
            (0.5, 0.127, 0.627, 0.871), (1, 0.125, 0.626, 0.870)]
    return [
        Line(0, Original(), 0.500, 1, 1),
        *(Line(0, CachePrior(penalty=p, keep_top=1), *rest) for p, *rest in full),
        Line(0, MaxRank(window=6, keep_top=1), 0.298, 0.796, 0.952),
        Line(0, MaxRank(window=8, keep_top=1), 0.186, 0.683, 0.904),
        Line(0, MaxRank(window=12, keep_top=1), 0.128, 0.631, 0.873),
        Line(0, CumulativeThreshold(mass=0.5, keep_top=1), 0.313, 0.810, 0.960),
        Line(0, CumulativeThreshold(mass=0.7, keep_top=1), 0.144, 0.643, 0.882),
        Line(1, Original(), 0.504), *prior(1, p05=0.409, p1=0.314, p25=0.143, p5=0.124, one=0.124),
        Line(2, Original(), 0.500), *prior(2, p25=0.321, p5=0.262, one=0.248),
    ]


def measure(bench: Bench) -> Values:
    """A row for each line, and Belady's bound of each shape."""
    rows, bounds = [], []
    drawn = {}
    for shape, (E, K, C, _) in enumerate(SHAPES):
        z = np.random.default_rng(SEED + shape).standard_normal((bench.scale.synthetic_tokens, E)).astype(np.float32)
        drawn[shape] = z
        ids = _walked(shape, Original(), z).ids
        bounds.append({"shape": list(SHAPES[shape]), "bound": belady(ids, E, C, protected=False) / ids.size,
                       "theirs": (0.230, 0.221, 0.270)[shape]})
    for line in lines():
        walked = _walked(line.shape, line.policy, drawn[line.shape])
        K = SHAPES[line.shape][1]
        rows.append({"shape": list(SHAPES[line.shape]), "rule": repr(line.policy),
                     "miss": plain(1 - walked.hits.mean()), "theirs": line.miss,
                     "agreement": plain((walked.rank < K).mean()), "their_agreement": line.agreement,
                     "mass": plain(walked.mass.mean()), "their_mass": line.mass})
    return {"rows": rows, "bounds": bounds}


def _walked(shape: int, policy: RoutingPolicy, z: np.ndarray) -> Walked:
    E, K, C, _ = SHAPES[shape]
    weights = np.exp(z - z.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return walk(LayerState.new(E, K, C, policy, LRU()), z, weights)


def claims(values: Values) -> list[Claim]:
    """Agreement with the digest."""
    pairs = [(r["miss"], r["theirs"]) for r in values["rows"]] + [(b["bound"], b["theirs"]) for b in values["bounds"]]
    apart = [abs(ours - theirs) for ours, theirs in pairs]
    return [judged(
        "section 6", "the rules on independent normal logits give the digest's miss rates",
        f"each of {len(pairs)} figures within {100 * NEAR:g} points", [a <= NEAR for a in apart],
        f"at most {100 * max(apart):.2f} points apart",
        {HOLDS: "the rules are the same; what differs is the draw", PART: "some rule differs, see the table",
         NOT: "the rules differ"})]


def section(values: Values) -> str:
    """The table, ours beside theirs."""
    def both(ours: float, theirs: float | None) -> str:
        return f"{ours:.3f}" + ("" if theirs is None else f" ({theirs:.3f})")

    rows = [["E {}, K {}, C {}, J {}".format(*r["shape"]) + f", {r['rule']}", both(r["miss"], r["theirs"]),
             both(r["agreement"], r["their_agreement"]), both(r["mass"], r["their_mass"])] for r in values["rows"]]
    bounds = [["E {}, K {}, C {}, J {}".format(*b["shape"]) + ", Belady on the original routes",
               both(b["bound"], b["theirs"]), "", ""] for b in values["bounds"]]
    return f"""## Without a model

Independent normal logits, one layer, LRU, empty start, running D; the digest's figures in brackets.

{table(["rule", "misses", "agreement", "mass kept"], [*bounds, *rows])}
"""
