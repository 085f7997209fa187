"""Downstream accuracy, as far as a model this small has any: how often its likeliest next token is the right one.

Knows whole excerpts, teacher-forced, under the original routing and the best Cache-Prior.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from moe_lab.engine.score import windows
from moe_lab.evaluation.intervals import paired
from moe_lab.evaluation.measure import Setting
from moe_lab.pocket.corpus import WORLDS
from reproduction import curves
from reproduction.bench import Bench, Values, policy_parts
from reproduction.claims import HOLDS, NOT, PART, Claim, judged
from reproduction.words import by_world, percent, table

LITTLE = 0.001
"""The paper's: less than 0.1 % of accuracy."""


def measure(bench: Bench, main: Values) -> Values:
    """Shares of right tokens before and after, and their paired difference, for each world."""
    found = {}
    for world in WORLDS:
        best = curves.best(main, world, bench.half, rule="cache-prior")
        if best is not None:
            chosen = bench.setting(curves.best_policy(best))
            ids = bench.ids[world] if bench.scale.quick else bench.texts[world]
            right = [_kept(bench, world, ids, one) for one in (bench.setting(), chosen)]
            found[world] = _compared(right, best)
    return {"worlds": found}


def _kept(bench: Bench, world: str, ids: list[int], setting: Setting) -> Values:
    return bench.kept(sys.modules[__name__], [world, len(ids), *policy_parts(setting)],
                      lambda: _count(bench, ids, setting))


def _count(bench: Bench, ids: list[int], setting: Setting) -> Values:
    """Right tokens and tokens of each window."""
    right, tokens = [], []
    with bench.engine.fresh_state(setting.routing, setting.eviction, setting.slots):
        for logits, targets in windows(bench.engine, ids, bench.scale.window, fresh=True):
            right.append(int((logits.argmax(-1) == targets).sum(dtype=torch.int64)))
            tokens.append(len(targets))
    return {"right": right, "tokens": tokens}


def _compared(counts: list[Values], best: Values) -> Values:
    before, after = counts
    tokens = before["tokens"]
    difference = paired(after["right"], before["right"], tokens)
    return {"tokens": int(np.sum(tokens)), "setting": curves.words(best), "miss_rate": best["miss_rate"],
            "before": sum(before["right"]) / sum(tokens), "after": sum(after["right"]) / sum(tokens),
            "difference": list(difference)}


def claims(values: Values) -> list[Claim]:
    """Within 0.1 %? In part, where the interval does not rule it out."""
    worlds = values["worlds"]
    passed = []
    for world in WORLDS:
        mean, low, high = worlds[world]["difference"] if world in worlds else (1.0, 1.0, 1.0)
        passed += [abs(mean) <= LITTLE, low <= LITTLE and high >= -LITTLE]
    words = {w: f"{100 * x['difference'][0]:+.2f} points ({100 * x['difference'][1]:+.2f} to "
                f"{100 * x['difference'][2]:+.2f})" for w, x in worlds.items()}
    return [judged(
        "section 1", "downstream accuracy moves by less than 0.1 %", "the share of right next tokens moves by at most "
        f"{100 * LITTLE:g} points at the best setting for {percent(curves.ALLOWED, 0)} of perplexity (in part: the "
        "interval does not rule it out); a stand-in, since this model solves no downstream task", passed,
        by_world(words) or "no such setting",
        {HOLDS: "tokens that the model is sure of stay right; what moves is the tail",
         PART: "the change is small, but so is what the paper allows: the interval is wider than that, or one world is "
               "over the line. Next tokens are a harsher measure than multiple choice",
         NOT: "next tokens are a harsher measure than multiple choice, where a small shift rarely changes the answer"})]


def section(values: Values) -> str:
    """A table by world."""
    rows = [[world, x["setting"], f"{x['tokens']:,}", percent(x["before"], 2), percent(x["after"], 2),
             "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * end for end in x["difference"]))]
            for world, x in values["worlds"].items()]
    return f"""## Accuracy

Share of the next tokens that are the model's first choice, half of the experts resident, LRU; whole excerpts.

{table(["world", "setting", "tokens", "original", "Cache-Prior", "difference, points"], rows)}
"""
