"""What being watched costs: share of a pocket token that telemetry takes. ``python benchmarks/telemetry.py``

The seconds spent inside the five calls of the telemetry, over the seconds of the decoded tokens, all experts
resident. The clock calls themselves are counted as telemetry's, so the share is an upper bound. Left out: the
first run (compilation) and prefill. Median of several runs, best and worst beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import moe_lab as ml


def share_of(engine: ml.Engine, tokens: int) -> float:
    """Telemetry's share of the decode time of one run."""
    spent = [0.0]
    names = ("begin", "routing", "routed", "computed", "end")
    originals = {name: getattr(engine.telemetry, name) for name in names}

    def timed(call):  # type: ignore[no-untyped-def]
        def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - began

        return wrapper

    for name, call in originals.items():
        setattr(engine.telemetry, name, timed(call))
    total = 0.0
    try:
        for step in engine.stream("class Stack:", max_new_tokens=tokens, stop_at_end=False):
            if step.index == 0:
                spent[0] = 0.0
            else:
                total += step.times.total_s
    finally:
        for name in names:
            delattr(engine.telemetry, name)
    return spent[0] / total


def main() -> None:
    """Print the median share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = ml.load("pocket")
    share_of(engine, 20)
    shares = [share_of(engine, args.tokens) for _ in range(args.runs)]
    print(f"telemetry: {statistics.median(shares):.2%} of a decoded token "
          f"({min(shares):.2%} to {max(shares):.2%}, {args.runs} runs of {args.tokens} tokens); "
          f"{engine.stats.decode.times.total_s / engine.stats.decode.tokens * 1e3:.2f} ms a token")


if __name__ == "__main__":
    main()
