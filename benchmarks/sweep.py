"""What one point of a sweep costs, against a plain forward of transformers over the same text.

    python benchmarks/sweep.py [--model pocket] [--tokens 4096] [--rounds 5] [--weights bf16]

Both are timed in turn, medians are compared; the warm-up round is left out. The plain model is transformers' own with
all its experts in memory, loss included; the faster of its two implementations of experts counts.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import moe_lab as ml
from moe_lab.engine.score import loss_of
from moe_lab.models import DTYPES, resolve_model


def plain(folder: Path, dtype: torch.dtype, experts: str, ids: list[int], window: int) -> Callable[[], float]:
    """A forward over the text in windows, by transformers alone."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(folder, dtype=dtype, experts_implementation=experts).eval()

    def run() -> float:
        total = 0.0
        with torch.inference_mode():
            for start in range(0, len(ids) - 1, window):
                part = torch.tensor([ids[start : start + window + 1]])
                total += loss_of(model(input_ids=part[:, :-1], use_cache=False).logits[0], part[0, 1:])
        return total

    return run


def main() -> None:
    """Time both in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", choices=list(DTYPES), default=None)
    parser.add_argument("--text", type=Path, default=Path(ml.pocket.__file__).parent / "held_out" / "prose.txt")
    arguments = parser.parse_args()
    transformers.logging.disable_progress_bar()
    engine = ml.load(arguments.model, cache="50%", weights=arguments.weights)
    text = arguments.text.read_text(encoding="utf-8")
    ids = engine.tokenizer(text, verbose=False)["input_ids"][: arguments.tokens + 1]
    window = min(1024, engine.spec.context)
    folder, dtype = resolve_model(arguments.model), DTYPES[engine.format.name]
    penalties = [(i + 1) / 100 for i in range(arguments.rounds + 1)]
    sweep = ml.sweep(engine, ids, routing=[ml.routing.CachePrior(penalty=p) for p in penalties], cache="50%",
                     window=window, store=False)
    original = ml.sweep(engine, ids, routing="original", eviction=["lru", "fifo"], cache=["25%", "50%", "75%"],
                        window=window, store=False)
    runs = {name: plain(folder, dtype, name, ids, window) for name in ("eager", "grouped_mm")}
    times: dict[str, list[float]] = {name: [] for name in (*runs, "point")}
    points = iter(sweep)
    for _ in range(arguments.rounds + 1):
        for name, run in (*runs.items(), ("point", lambda: next(points).perplexity)):
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    best = min(median["eager"], median["grouped_mm"])
    began = time.perf_counter()
    original.finish()
    extra = time.perf_counter() - began
    print(f"{engine.spec.name}, {engine.format.name}, {len(ids) - 1:,} tokens in windows of {window:,}; "
          f"{torch.get_num_threads()} of {os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}")
    for name, seconds in median.items():
        print(f"  {name:<11} {seconds:7.2f} s  median of {arguments.rounds} ({min(times[name][1:]):.2f} to "
              f"{max(times[name][1:]):.2f})")
    print(f"  one point costs {median['point'] / best:.2f} x a plain forward; the first one, with the reference pass, "
          f"took {times['point'][0]:.2f} s")
    print(f"  {len(original)} points with the original routing: {extra:.2f} s, one reference pass included")


if __name__ == "__main__":
    main()
