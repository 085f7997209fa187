"""The model card: ``python -m moe_lab.pocket.card`` measures a checkpoint and writes its README.md.

Knows which measurements the card needs; how each is defined stands in ``measure``, how the page looks in ``page``.
All figures also go to ``figures.json`` beside the card, and the page is made from them alone, so it can be made again
without measuring.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab import pocket
from moe_lab.errors import CheckpointError
from moe_lab.pocket import measure
from moe_lab.pocket.corpus import WORLDS
from moe_lab.pocket.figures import Figures, Sample
from moe_lab.pocket.measure import Balance, Locality, Loss

Say = Callable[[str], None]

PROMPTS = {
    "python": ('def read_lines(path):\n    """', "class Queue:\n"),
    "prose": ("The following example shows how to", "Exceptions are"),
}
"""Beginnings that the samples go on from."""

SAMPLE_TOKENS = 120
WARMTH = 1.0
"""Temperature of the samples; colder, so small a model soon repeats itself."""


# --- measuring ----------------------------------------------------------------------------------------


def measure_losses(
    folder: Path, tokens: Path, most: int, say: Say
) -> tuple[dict[str, dict[str, dict[str, Loss]]], dict[str, dict[str, float]]]:
    """Losses of the checkpoint (float32, plain transformers) and of the 5-gram model on the same tokens; repeats.

    ``excerpt``: the packaged held-out text; ``all``: ``most`` windows spread over all held-out documents.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from moe_lab.pocket.ngram import NGram

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sizes = measure.token_bytes(tokenizer)
    texts = {
        (w, "excerpt"): np.array(tokenizer(pocket.held_out(w), verbose=False)["input_ids"], dtype=np.uint16)
        for w in WORLDS
    } | {(w, "all"): np.load(tokens / f"{w}.held.npy") for w in WORLDS}
    places = {k: measure.windows(len(ids), most=most if k[1] == "all" else None) for k, ids in texts.items()}
    losses: dict[str, dict[str, dict[str, Loss]]] = {w: {"excerpt": {}, "all": {}} for w in WORLDS}

    def note(key: tuple[str, str], name: str, values: np.ndarray) -> None:
        loss = measure.loss_of(values, texts[key], places[key], sizes)
        losses[key[0]][key[1]][name] = loss
        say(f"  {key[0]:>7}, {key[1]:>7}, {name:>5}: {loss.nats / loss.tokens:.4f} nats, "
            f"perplexity {loss.perplexity:.2f}, {loss.bits_per_byte:.3f} bits per byte")

    for key, ids in texts.items():
        note(key, "model", measure.model_losses(model, ids, places[key]))
    train = np.concatenate([np.load(tokens / f"{w}.train.npy") for w in WORLDS])
    ngram = NGram.count(train, vocabulary=len(tokenizer))
    for key, ids in texts.items():
        note(key, "ngram", measure.ngram_losses(ngram.log_probs(ids), places[key]))
    del ngram                                    # its tables and those of the repeats need not fit together
    shares = dict(zip(texts, measure.repeats(train, list(texts.values())), strict=True))
    return losses, {w: {part: shares[w, part] for part in ("excerpt", "all")} for w in WORLDS}


def shape_of(engine: Any, folder: Path) -> dict[str, int]:
    """Sizes of the model; ``parameters`` counts tied ones once, ``active`` those a token passes through."""
    from safetensors import safe_open

    counts: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as tensors:
            counts |= {name: math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    spec, total = engine.spec, sum(counts.values())
    one = 3 * spec.hidden * spec.expert_hidden
    return {
        "parameters": total, "active": total - spec.L * (spec.experts - spec.top_k) * one, "layers": spec.L,
        "experts": spec.experts, "top_k": spec.top_k, "hidden": spec.hidden, "expert_hidden": spec.expert_hidden,
        "vocabulary": engine.hf.config.vocab_size, "context": spec.context,
        "bytes": sum(f.stat().st_size for f in folder.glob("*.safetensors")),
    }


def write_samples(engine: Any) -> list[Sample]:
    """A text after each prompt, at ``WARMTH``."""
    return [Sample(world, prompt, WARMTH, engine.generate(prompt, max_new_tokens=SAMPLE_TOKENS, temperature=WARMTH,
                                                          seed=0).text)
            for world, prompts in PROMPTS.items() for prompt in prompts]


def measure_all(folder: Path, tokens: Path, most: int = 64, price_windows: int = 12, say: Say = print) -> Figures:
    """Measure the checkpoint in ``folder``, trained on the tokens in ``tokens``. Takes minutes.

    ``most``: see ``measure_losses``; ``price_windows``: windows of each world's held-out text that
    routes are taken from, and of each excerpt that every setting is scored on.
    """
    import moe_lab as ml

    losses, repeats = measure_losses(folder, tokens, most, say)
    engine = ml.load(str(folder), weights="f32")
    E, rows, routes = engine.spec.experts, {}, {}
    for world in WORLDS:
        say(f"routes and prices, {world}")
        routes[world] = measure.original_routes(engine, np.load(tokens / f"{world}.held.npy"), price_windows)
        ids = list(engine.tokenizer(pocket.held_out(world), verbose=False)["input_ids"])
        rows[world] = measure.prices(engine, ids[: price_windows * measure.WINDOW + 1], measure.GRID, say)
    halves = {w: np.array_split(ids, 2) for w, ids in routes.items()}
    use = {w: measure.usage(ids, E) for w, ids in routes.items()}
    within = np.mean([measure.overlap(*(measure.usage(h, E) for h in pair)) for pair in halves.values()], axis=0)
    return Figures(
        shape_of(engine, folder), _json(folder / "training.json"), _json(folder / "sources.json"), losses, repeats,
        [Balance.of(shares) for shares in measure.usage(np.concatenate([routes[w] for w in WORLDS]), E)],
        {w: Locality.of(ids, E) for w, ids in routes.items()},
        {"between": measure.overlap(*(use[w] for w in WORLDS)).tolist(), "within": within.tolist()},
        rows, price_windows, write_samples(engine),
    )


def _json(path: Path) -> Any:
    """A file beside the weights; raises ``CheckpointError`` that says how it comes to be."""
    if not path.exists():
        raise CheckpointError(f"{path} is missing; write the checkpoint with 'python -m moe_lab.pocket.export'")
    return json.loads(path.read_text())


def main() -> None:
    """Measure and write, from the terminal."""
    from moe_lab.pocket.page import page

    parser = argparse.ArgumentParser(prog="python -m moe_lab.pocket.card", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=pocket.folder(), help="the checkpoint (%(default)s)")
    parser.add_argument("--run", type=Path, default=Path("work/pocket"), help="folder of the run (%(default)s)")
    parser.add_argument("--windows", type=int, default=12, help="windows of a world for prices (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch (all)")
    parser.add_argument("--again", action="store_true", help="write the page from figures.json, measure nothing")
    args = parser.parse_args()
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    record = args.folder / "figures.json"
    figures = Figures.read(record) if args.again else measure_all(
        args.folder, args.run / "tokens", price_windows=args.windows)
    figures.write(record)
    (args.folder / "README.md").write_text(page(figures))
    print(f"wrote {args.folder / 'README.md'}")


if __name__ == "__main__":
    main()
