"""A whole model, all experts resident: prefill and decode, ours against llama.cpp. ``python benchmarks/whole_model.py``

    python benchmarks/make_checkpoint.py --like olmoe --layers 8 work/olmoe-8
    python -m venv work/llama && work/llama/bin/pip install xllamacpp gguf
    work/llama/bin/python benchmarks/llama_side.py write work/olmoe-8 q8_0 work/olmoe-8-q8.gguf
    python benchmarks/whole_model.py work/olmoe-8 --weights q8 --llama work/llama/bin/python work/olmoe-8-q8.gguf \\
        --library FOLDER

FOLDER: llama.cpp's libraries for every kind of processor, see ``ggml.py``; without it the xllamacpp wheel runs, which
is built for AVX2 alone. For ``--weights q4`` write the GGUF as ``q4_0 FILE q8_0``: the dense part is q8 on both sides.
Both sides take turns, round by round, so that a busy machine slows both; figures are medians of the rounds, ratios are
taken round by round. Left out: loading, compilation and a first round. Without ``--llama`` only our side runs. Weights
are random: the figures say nothing about quality, and experts are chosen more evenly than by a trained router.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Table, machine, median, number, use_threads

import moe_lab as ml


def ours(engine: ml.Engine, prompt: int, tokens: int, seed: int) -> tuple[float, float]:
    """Seconds of a prompt of ``prompt`` tokens, and of each of ``tokens`` tokens after it."""
    ids = np.random.default_rng(seed).integers(10, 30_000, size=prompt).tolist()
    began = time.perf_counter()
    steps = engine.stream(ids, max_new_tokens=tokens + 1, stop_at_end=False)
    next(steps)
    middle = time.perf_counter()
    for _ in steps:
        pass
    return middle - began, (time.perf_counter() - middle) / tokens


class Llama:
    """llama.cpp in a process of its own."""

    def __init__(self, python: str, gguf: str, threads: int, library: str | None) -> None:
        side = [python, str(Path(__file__).with_name("llama_side.py")), "serve", gguf, str(threads)]
        self._process = subprocess.Popen(side + ([library] if library else []), stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit("llama.cpp ended; run the command with `serve` by hand to see why")

    def __call__(self, prompt: int, tokens: int) -> tuple[float, float]:
        """Seconds of the prompt and of each token, by its own clock."""
        assert self._process.stdin is not None
        print(json.dumps({"prompt": prompt, "tokens": tokens}), file=self._process.stdin, flush=True)
        t = self._answer()
        return t["prompt_s"] * prompt / t["prompt"], t["decode_s"] / t["tokens"]


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--weights", default=None, help="format of our side; the checkpoint's own by default")
    parser.add_argument("--llama", nargs=2, metavar=("PYTHON", "GGUF"), help="interpreter with xllamacpp; model")
    parser.add_argument("--library", metavar="PLACE", help="llama.cpp's libraries, see ggml.py; else the wheel")
    parser.add_argument("--dense", default=None, help="format of our dense part; by default q8 beside q8 and q4")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--markdown", action="store_true", help="print rows of a Markdown table")
    args = parser.parse_args()
    use_threads(args.threads)
    print(machine())
    engine = ml.load(args.checkpoint, cache="100%", weights=args.weights, dense=args.dense)
    print(engine)
    llama = Llama(*args.llama, args.threads, args.library) if args.llama else None
    mine: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for turn in range(args.rounds + 1):
        mine.append(ours(engine, args.prompt, args.tokens, turn))
        if llama is not None:
            theirs.append(llama(args.prompt, args.tokens))
    mine, theirs = mine[1:], theirs[1:]
    times = engine.stats.decode.times
    parts = {name: getattr(times, f"{name}_s") / engine.stats.decode.tokens * 1e3
             for name in ("read", "route", "experts", "rest")}
    print(f"our token, last round, ms: {', '.join(f'{name} {value:.2f}' for name, value in parts.items())}")
    name = f"{Path(args.checkpoint).name} {args.weights or engine.spec.dtype}, {args.threads}"
    print()
    table = Table(["checkpoint, threads", "what", "ours, ms", "llama.cpp, ms", "ours is x as fast (range)"],
                  [24, 24, 10, 14, 26], args.markdown)
    for place, what in ((0, f"prefill of {args.prompt}"), (1, "decode, a token")):
        ratios = [b[place] / a[place] for a, b in zip(mine, theirs, strict=True)] if llama else []
        table.row(name, what, number(statistics.median(row[place] for row in mine) * 1e3),
                  number(median([row[place] for row in theirs]) * 1e3),
                  f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "-")


if __name__ == "__main__":
    main()
