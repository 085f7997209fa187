"""A whole model, all experts resident: prefill and decode, ours against llama.cpp. ``python benchmarks/whole_model.py``

    python benchmarks/make_checkpoint.py --like olmoe --layers 4 work/olmoe-4
    python -m venv work/llama && work/llama/bin/pip install xllamacpp gguf
    work/llama/bin/python benchmarks/llama_side.py write work/olmoe-4 q8_0 work/olmoe-4-q8.gguf
    python benchmarks/whole_model.py work/olmoe-4 --weights q8 --llama work/llama/bin/python work/olmoe-4-q8.gguf

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
import torch

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

    def __init__(self, python: str, gguf: str, threads: int) -> None:
        side = Path(__file__).with_name("llama_side.py")
        self._process = subprocess.Popen([python, str(side), "serve", gguf, str(threads)], stdin=subprocess.PIPE,
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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    engine = ml.load(args.checkpoint, cache="100%", weights=args.weights)
    print(engine)
    llama = Llama(*args.llama, args.threads) if args.llama else None
    mine, theirs = [], []
    for turn in range(args.rounds + 1):
        mine.append(ours(engine, args.prompt, args.tokens, turn))
        if llama is not None:
            theirs.append(llama(args.prompt, args.tokens))
    mine, theirs = mine[1:], theirs[1:]
    times = engine.stats.decode.times
    parts = {name: getattr(times, f"{name}_s") / engine.stats.decode.tokens * 1e3
             for name in ("read", "route", "experts", "rest")}
    print(f"our token, last round, ms: {', '.join(f'{name} {value:.2f}' for name, value in parts.items())}")
    for place, what in ((0, f"prefill of {args.prompt} tokens"), (1, "decode, a token")):
        us = statistics.median(row[place] for row in mine)
        line = f"{what:26} ours {us * 1e3:9.1f} ms"
        if theirs:
            them = statistics.median(row[place] for row in theirs)
            ratio = statistics.median(b[place] / a[place] for a, b in zip(mine, theirs, strict=True))
            line += f"   llama.cpp {them * 1e3:9.1f} ms   ours is {ratio:.2f} x as fast"
        print(line)


if __name__ == "__main__":
    main()
