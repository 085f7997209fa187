"""The page: plain values in, Markdown out.

Knows the order of the topics. Knows no model and measures nothing; no figure stands in a text of its own.
"""

from __future__ import annotations

import textwrap
from typing import Any

from moe_lab.pocket.corpus import WORLDS
from reproduction import (
    accuracy,
    curves,
    eviction,
    floor,
    head,
    lifetimes,
    ranks,
    speed,
    spread,
    start,
    synthetic,
    transfer,
)
from reproduction.bench import FULL, Values
from reproduction.claims import HOLDS, NOT, PART, Claim
from reproduction.words import table

QUICK = """
> **Made with `--quick`**, on a few tokens and settings, to see that every part runs. No figure here means anything.
"""

SHORT = """
> **Made with `--windows {windows}`**, where the whole report takes {whole}: figures are real, intervals are wide, and a
> verdict near its threshold may turn.
"""


def claims(report: Values) -> list[Claim]:
    """All verdicts, in the order of the page."""
    main = report["curves"]
    return [*curves.claims(main), *ranks.claims(report["ranks"]), *eviction.claims(report["eviction"], main),
            *accuracy.claims(report["accuracy"]), *speed.claims(report["speed"]), training(report),
            *head.claims(report["head"], main), *lifetimes.claims(main), *transfer.claims(main),
            *spread.claims(report["spread"]), *start.claims(report["start"]),
            *floor.claims(report["floor"], main, report["head"]), *synthetic.claims(report["synthetic"])]


def training(report: Values) -> Claim:
    """No training: the weights before and after everything."""
    before, after = report["model"]["digest"], report["model"]["digest_after"]
    return Claim("section 1", "it needs no training", HOLDS if before == after else NOT,
                 "the checkpoint is the same, byte for byte, after everything was measured",
                 f"{before[:8]} before, {after[:8]} after", "only the choice of experts changes" if before == after else
                 "somebody changed the file meanwhile; measure again")


def page(report: Values) -> str:
    """The whole report."""
    main = report["curves"]
    parts = [
        _head(report), _warning(report["made"]), _verdicts(report["claims"]),
        curves.targets_section(main), curves.section(main),
        "![Misses and perplexity by penalty](pictures/paper-penalty.png)", lifetimes.section(main),
        ranks.section(report["ranks"]), head.section(report["head"]), accuracy.section(report["accuracy"]),
        speed.section(report["speed"]), eviction.section(report["eviction"], main), start.section(report["start"]),
        spread.section(report["spread"]), transfer.section(main),
        floor.section(report["floor"], main, report["head"]), synthetic.section(report["synthetic"]),
    ]
    return "\n".join(part.strip() + "\n" for part in parts if part.strip())


def _warning(made: Values) -> str:
    if made["quick"]:
        return QUICK
    return SHORT.format(windows=made["windows"], whole=FULL.windows) if made["windows"] < FULL.windows else ""


def _head(report: Values) -> str:
    m, made = report["model"], report["made"]
    trained = f"trained on {m['trained_tokens'] / 1e6:.1f} M tokens" if m["trained_tokens"] else "training not recorded"
    texts = "; ".join(f"{w}: {t['tokens']:,} tokens, perplexity {t['perplexity']:.2f}"
                      for w, t in report["texts"].items())
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    about = """\
*Mixture of Cache-Conditional Experts* ([arXiv 2412.00099](https://arxiv.org/abs/2412.00099)) claims that a router can
be nudged towards the experts that are in memory: far fewer misses, hardly any loss. `python benchmarks/paper.py`
measures every claim again on a model that this project trained, and writes this page, its pictures and `paper.json`
beside it. No figure on it is typed by hand, and no verdict: each follows from a threshold that is stated. What the
paper claims is taken from public notes on it, listed by section."""
    setting = f"""\
{m["name"]}: {m["layers"]} layers of {m["experts"]} experts, {m["top_k"]} per token, {trained}, weights
{m["digest"][:8]}. Text: held-out excerpts in windows of {report["texts"][WORLDS[0]]["window"]:,} tokens ({texts}).
Residents are empty at each window, the running range D is kept; every token is routed with the cache rule, exactly as
in generation. Perplexity is teacher-forced, float32; changes are against the original routing, with intervals of 95 %
paired over windows. Miss rate: experts that were not resident over all expert uses. Made with {versions};
{made["cpus"]} CPUs, {made["machine"]}, {made["threads"]} thread{"s" if made["threads"] > 1 else ""}."""
    paragraphs = (textwrap.fill(text.replace("\n", " "), 120, break_long_words=False, break_on_hyphens=False)
                  for text in (about, setting))
    return "# The paper on the pocket model\n\n" + "\n\n".join(paragraphs)


def _verdicts(found: list[dict[str, Any]]) -> str:
    words = {HOLDS: "hold", PART: "hold in part", NOT: "do not hold"}
    counts = ", ".join(f"{sum(c['verdict'] == verdict for c in found)} {word}" for verdict, word in words.items())
    rows = [[f"{c['claim']} ({c['source']})", f"**{c['verdict']}**", c["found"], c["test"], c["why"]] for c in found]
    lines = table(["claim", "verdict", "found here", "by which test", "why"], rows).replace("--:", "---")
    return f"## Verdicts\n\nOf {len(found)} claims, {counts}.\n\n{lines}\n"
