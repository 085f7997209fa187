"""D, the spread of the logits: estimated on the run, measured before, or each token's own.

Knows recorded logits, Cache-Prior with a running or the token's own range, and a twin of it, written as a user would
write it, that takes a measured range for each layer from a table.
"""

from __future__ import annotations

import numpy as np

import moe_lab as ml
from moe_lab.evaluation.measure import Setting
from moe_lab.kernels.layout import LAYER
from moe_lab.pocket.corpus import WORLDS
from moe_lab.routing import CachePrior, RoutingPolicy, Table, best
from reproduction.bench import Bench, Values, beside, plain, row
from reproduction.claims import HOLDS, NOT, PART, Claim, judged
from reproduction.words import by_world, change, interval, percent, table

KINDS = ("running mean", "measured on this text", "measured on the other world", "each token's own")
PENALTIES = (0.1, 0.2, 0.3)
SLIGHT = 0.005
"""A difference of perplexity, and of the miss rate, that is slight."""
MOST_LAYERS = 64


@ml.routing.policy(penalty=ml.Parameter(0.2, 0, 1, doc="what an expert that is not resident loses, in ranges"),
                   ranges=Table([0.0] * MOST_LAYERS, doc="D of each layer, measured before"))
def measured(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
    """Cache-Prior with one kept expert and a range that was measured before, layer by layer."""
    bonus = np.float32(params[0] * params[1 + int(state[LAYER])])
    for e in range(len(logits)):
        scores[e] = logits[e] + bonus if resident[e] else logits[e]
    for e in best(logits, 1):
        scores[e] = np.inf


def ranges(bench: Bench, world: str) -> np.ndarray:
    """max - min of the router's logits: (T, L) float64."""
    logits = bench.trace(world).logits
    assert logits is not None
    z = logits.astype(np.float64)
    spread: np.ndarray = z.max(2) - z.min(2)
    return spread


def _policies(bench: Bench, world: str, penalty: float) -> dict[str, RoutingPolicy]:
    other = next(w for w in WORLDS if w != world)
    here, there = (measured(penalty=penalty, ranges=_table(bench, w)) for w in (world, other))
    running, own = (CachePrior(penalty=penalty, keep_top=1, logit_range=kind) for kind in ("running", "token"))
    return dict(zip(KINDS, (running, here, there, own), strict=True))


def _table(bench: Bench, world: str) -> np.ndarray:
    """The mean range of each layer, (MOST_LAYERS,) with zeros for layers that are not there."""
    table = np.zeros(MOST_LAYERS)
    table[: bench.engine.spec.L] = ranges(bench, world).mean(0)
    return table


def _penalties(bench: Bench) -> tuple[float, ...]:
    return PENALTIES[1:2] if bench.scale.quick else PENALTIES


def settings(bench: Bench, world: str) -> list[Setting]:
    """Every kind at every penalty."""
    return [bench.setting(policy) for penalty in _penalties(bench)
            for policy in _policies(bench, world, penalty).values()]


def measure(bench: Bench) -> Values:
    """A row for each; ``beside`` compares its perplexity with the running mean's. And D itself, by layer."""
    rows, spread = [], {}
    for world in WORLDS:
        for penalty in _penalties(bench):
            points = {kind: bench.point(world, bench.setting(policy))
                      for kind, policy in _policies(bench, world, penalty).items()}
            for kind, point in points.items():
                ends = beside(point, points[KINDS[0]], bench.scale.window)
                rows.append({**row(world, point), "setting": f"penalty {penalty:g}", "kind": kind,
                             "beside": [plain(end) for end in ends]})
        z = ranges(bench, world)
        spread[world] = {"mean": [plain(x) for x in z.mean(0)], "deviation": [plain(x) for x in z.std(0)],
                         "after_64": [plain(x) for x in z[:64].mean(0)]}
    return {"points": rows, "spread": spread}


def claims(values: Values) -> list[Claim]:
    """Running against measured."""
    apart = {w: max(max(abs(r["beside"][0]), abs(r["miss_rate"] - _running(values, r)["miss_rate"]))
                    for r in values["points"] if r["world"] == w and r["kind"] == KINDS[1]) for w in WORLDS}
    return [judged(
        "section 4, ablation", "a running mean of the range is as good as a measured one",
        f"half of the experts resident, every penalty tried: perplexity and miss rate within {percent(SLIGHT)}",
        [a <= SLIGHT for a in apart.values()],
        by_world({w: f"at most {percent(a, 2)} apart" for w, a in apart.items()}),
        {HOLDS: "the range varies little from token to token, so its mean settles within a few of them",
         PART: "in one world the first tokens are unlike the rest", NOT: "the first tokens are unlike the rest"})]


def _running(values: Values, like: Values) -> Values:
    """The row of the running mean at the same penalty."""
    return next(r for r in values["points"] if r["kind"] == KINDS[0] and all(
        r[key] == like[key] for key in ("world", "strength")))


def section(values: Values) -> str:
    """Tables of D and of what its kinds do."""
    layers = range(len(values["spread"][WORLDS[0]]["mean"]))
    spread = [[str(l), *(f"{x['mean'][l]:.2f} ± {x['deviation'][l]:.2f}, {x['after_64'][l]:.2f}"
                         for x in values["spread"].values())] for l in layers]
    rows = [[f"{r['setting']}, {r['kind']}", r["world"], interval(r), percent(r["miss_rate"]),
             "" if r["kind"] == KINDS[0] else change(r["beside"][0])] for r in values["points"]]
    return f"""## The range D

The bonus of Cache-Prior is penalty x D, D the usual max - min of a token's logits. By layer: its mean ± its deviation
from token to token, and the running mean after 64 tokens.

{table(["layer", *WORLDS], spread)}

Half of the experts resident, J 1. The last column compares perplexity with that of the running mean.

{table(["penalty, D", "world", "perplexity", "misses", "against running"], rows)}
"""
