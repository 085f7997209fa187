"""The model card's page: figures in, Markdown out.

Knows words and tables. Knows no model and measures nothing: every number comes from ``Figures``.
"""

from __future__ import annotations

import textwrap

from moe_lab.pocket.corpus import WORLDS
from moe_lab.pocket.figures import Figures
from moe_lab.pocket.measure import WINDOW, Row

LICENCES = {
    "PSF-2.0": ("python", "python-manual"),
    "BSD (2 or 3 clauses)": (
        "numpy", "pandas", "sympy", "networkx", "numba", "llvmlite", "torch", "pygments", "mpmath", "jinja2", "click",
        "dateutil", "fsspec", "psutil", "httpx", "IPython", "ipywidgets", "traitlets", "jupyter_client",
        "jupyter_server", "nbformat", "nbclient", "notebook", "ipykernel",
    ),
    "MIT": (
        "pip", "setuptools", "rich", "pydantic", "narwhals", "typer", "anyio", "yaml", "filelock", "jedi", "plotly",
    ),
    "Apache-2.0": ("transformers", "huggingface_hub", "packaging", "tornado"),
    "MPL-2.0 and MIT": ("tqdm",),
    "GPL-2.0": ("git-manual", "linux-manual"),
}
"""Main licence of each source of text."""

HEAD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [moe, mixture-of-experts, olmoe, teaching]
---

# The pocket model

A small mixture-of-experts language model, trained by MoE Lab from random weights on Python source and the English
prose of manuals, so that everything about caches and routing can be tried and priced on a real model without a
download. It writes recognisable Python and recognisable English; it knows nothing, answers no questions and must not
be used for its content. This page is written by `python -m moe_lab.pocket.card`; every figure is measured.
"""


def page(f: Figures) -> str:
    """The whole card."""
    parts = (HEAD, shape(f), data(f), losses(f), experts(f), prices(f), samples(f), again(f))
    return "\n".join(part.strip() + "\n" for part in parts)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others figures.

    >>> print(table(["a", "b"], [["x", "1"]]))
    | a | b |
    |---|--:|
    | x | 1 |
    """
    rule = "|---|" + "--:|" * (len(head) - 1)
    first, *rest = ("| " + " | ".join(cells) + " |" for cells in (head, *rows))
    return "\n".join([first, rule, *rest])


def shape(f: Figures) -> str:
    """Sizes and training."""
    s, t = f.shape, f.training
    whole = f"a run of {t['total'] / 1e6:.0f} M" if t["tokens"] >= t["total"] else (
        f"an interim state of a run of {t['total'] / 1e6:.0f} M")
    return f"""
## Shape and training

OLMoE architecture: {s['layers']} layers of {s['experts']} experts, {s['top_k']} used per token; width {s['hidden']},
expert width {s['expert_hidden']}; softmax over all experts, not renormalised; tied embeddings.
{s['parameters'] / 1e6:.1f} M parameters, {s['active'] / 1e6:.1f} M of them active;
{s['bytes'] / 1e6:.1f} MB in bfloat16.
A byte-level BPE of {s['vocabulary']:,} tokens gives every text back as it was; context {s['context']:,} tokens.

Trained for {t['step']:,} steps, {t['tokens'] / 1e6:.1f} M tokens ({whole}), from random weights: AdamW, learning rate
rising, steady, and falling over the last third; windows of 256 tokens, then 1,024 and 2,048. A weak load-balancing
loss (0.01) leaves experts that differ. `python -m moe_lab.pocket.train` does it again.
"""


def data(f: Figures) -> str:
    """Text and licences."""
    rows = [
        [f"{world}, {part}", f"{x['documents']:,}", f"{x['bytes'] / 1e6:.1f} MB", f"{x['tokens'] / 1e6:.2f} M"]
        for world in WORLDS
        for part, x in (("trained on", f.sources[f"{world}.train"]), ("held out", f.sources[f"{world}.held"]))
    ]
    common = "; ".join(
        f"{world} {f.repeats[world]['excerpt']:.1%} of the excerpt, {f.repeats[world]['all']:.1%} of all held-out text"
        for world in WORLDS
    )
    shares = {k: v for world in WORLDS for k, v in f.sources[f"{world}.train"].get("sources", {}).items()}
    licences = []
    for licence, names in LICENCES.items():
        here = sorted((n for n in names if n in shares), key=lambda n: -shares[n])
        if here:
            size = sum(shares[n] for n in here) / 1e6
            licences.append([f"{licence}: " + ", ".join(f"{n} {shares[n] / 1e6:.1f}" for n in here), f"{size:.1f} MB"])
    return f"""
## Text and licences

Two worlds: *python*, the standard library and the packages of the environment; *prose*, the sources of the manuals of
Python, git and Linux as Debian ships them.

{table(["world", "documents", "text", "tokens"], rows)}

Documents are held out by name, never by position: some modules and chapters by a list (the packaged excerpts are cut
from these), and one in forty of all others by a hash of the name. Source code repeats itself, so some stretches of
held-out text stand elsewhere too. Runs of 32 tokens that the training text also holds:
{common}. That favours a 5-gram model more than this one.

The weights come under the project's licence (Apache-2.0). The text they were trained on is free text under these
licences (main licence of each source, MB of text); the model can repeat short stretches of it:

{table(["licence: sources", "in all"], licences)}
"""


def losses(f: Figures) -> str:
    """Held-out losses beside the baseline's."""
    names = {"excerpt": "the packaged excerpt", "all": "all held-out documents, a sample"}
    rows = []
    for world in WORLDS:
        for part, name in names.items():
            model, ngram = f.losses[world][part]["model"], f.losses[world][part]["ngram"]
            rows.append([f"{world}, {name}", f"{model.tokens:,}", f"{model.perplexity:.2f}", f"{ngram.perplexity:.2f}",
                         f"{model.bits_per_byte:.3f}", f"{ngram.bits_per_byte:.3f}"])
    head = ["text", "tokens", "perplexity", "5-gram's", "bits per byte", "5-gram's"]
    return f"""
## Held-out loss

Perplexity is per token of this tokenizer; windows of {WINDOW:,} tokens, float32, plain transformers. The baseline is an
interpolated 5-gram model (modified Kneser-Ney) counted on the same training tokens and read on the same held-out ones,
with its context never cut.

{table(head, rows)}
"""


def experts(f: Figures) -> str:
    """Balance, locality, difference of the worlds."""
    rows = [
        [str(l), f"{b.most:.2f}", f"{b.least:.2f}", f"{b.entropy:.3f}", str(b.dead), f"{between:.0%}", f"{within:.0%}"]
        for l, (b, between, within) in enumerate(
            zip(f.balance, f.overlap["between"], f.overlap["within"], strict=True))
    ]
    head = ["layer", "busiest", "least used", "entropy", "dead", "common to both worlds", "to halves of one"]
    local = [
        [world, f"{x.lru:.1%}", f"{x.shuffled_lru:.1%}", f"{x.belady:.1%}", f"{x.reuse:.1%}", f"{x.shuffled_reuse:.1%}"]
        for world, x in f.locality.items()
    ]
    return f"""
## Experts

On {f.price_windows} windows of {WINDOW:,} tokens spread over each world's held-out documents. Busiest and least used:
uses over an even share. Entropy: of the shares, 1 is even. Common: how much of the two worlds' expert use coincides
(100 %: the same shares), beside the same for two halves of one world.

{table(head, rows)}

How local the original routing is in time, with half of the experts resident (LRU, empty at each window of {WINDOW:,}).
Shuffled: the same tokens in random order, so everything but locality stays. Reuse: uses whose expert the token before
used too.

{table(["world", "misses, LRU", "shuffled", "Belady's bound", "reuse", "shuffled"], local)}
"""


def prices(f: Figures) -> str:
    """What Cache-Prior costs and saves."""
    sections = []
    sizes = list(dict.fromkeys(row.cache for row in f.prices[WORLDS[0]]))
    for size in sizes:
        rows = {w: [row for row in f.prices[w] if row.cache == size] for w in WORLDS}
        base = {w: rows[w][0] for w in WORLDS}
        before = "; ".join(
            f"{w}: perplexity {b.perplexity:.2f}, misses {b.miss_rate:.1%}, Belady's bound {b.bound:.1%}"
            for w, b in base.items())
        body = [_row(a, b, base) for a, b in zip(*(rows[w][1:] for w in WORLDS), strict=True)]
        head = ["keep_top, penalty"]
        for w in WORLDS:
            head += [f"{w}: perplexity", "misses", "fewer"]
        title = f"**{size} of the {f.shape['experts']} experts.** Original routing: {before}."
        sections.append(f"{title}\n\n{table(head, body)}")
    return f"""
## The price of Cache-Prior

Teacher-forced on the held-out excerpts ({f.price_windows} windows of {WINDOW:,} tokens a world), LRU, residents empty
at each window, every token routed as generation would route it; float32. Perplexity: change against the original
routing. Fewer: misses saved. Belady's bound: the least misses of any eviction under the original routing.

""" + "\n\n".join(sections) + "\n"


def _row(a: Row, b: Row, base: dict[str, Row]) -> list[str]:
    cells = [f"{a.keep_top}, {a.penalty:g}"]
    for row, world in zip((a, b), WORLDS, strict=True):
        saved = 1 - row.miss_rate / base[world].miss_rate
        cells += [f"{row.change:+.2%}", f"{row.miss_rate:.1%}", f"{saved:.0%}"]
    return cells


_SAMPLES = """
## Samples

Each text begins with its prompt. Taken as they came, seed 0. Greedily, a model this small soon repeats itself, and a
text in a loop uses the same experts again and again: its hit rate and speed are no measure.
"""


def samples(f: Figures) -> str:
    """Texts it wrote."""
    parts = [_SAMPLES]
    for s in f.samples:
        how = "greedy" if not s.temperature else f"temperature {s.temperature:g}"
        parts.append(f"*{s.world}*, {how}, after `{s.prompt.strip().splitlines()[0]}`:\n\n"
                     + textwrap.indent(s.prompt + s.text.rstrip(), "    ", lambda line: True) + "\n")
    return "\n".join(parts)


def again(f: Figures) -> str:
    """How to use it and make it again."""
    return """
## Use

```python
import moe_lab as ml
engine = ml.load("pocket", cache="50%", routing=ml.routing.CachePrior(penalty=0.1, keep_top=1))
print(engine.generate("def read_lines(path):", temperature=1.0).text)
```

or with plain transformers, `AutoModelForCausalLM.from_pretrained(moe_lab.pocket.folder())`. Everything on this page
in machine-readable form: `figures.json`.
"""
