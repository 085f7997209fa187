"""What being watched costs: share of a pocket token that telemetry takes. ``python benchmarks/telemetry.py``

The seconds spent inside the calls of the telemetry, over the seconds of a decoded token, all experts resident. A
clock is read before and after each call; what two readings with nothing between them take is measured beforehand
and subtracted, call by call. What it costs to pass a call through the stop-watch stays in, so the share is an upper
bound. A token's calls are added up and the median is taken over all tokens, so that a token in which another program
had the core does not count for more than one. Left out: the first run (compilation) and prefill.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

import moe_lab as ml

CALLS = ("begin", "room", "routed", "computed", "end")


class StopWatch:
    """Seconds inside calls since it was last read, without those of the clock."""

    def __init__(self) -> None:
        self._clock_s = statistics.median(self._nothing() for _ in range(20_000))
        self._inside_s, self._calls = 0.0, 0

    @staticmethod
    def _nothing() -> float:
        began = perf_counter()
        return perf_counter() - began

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, under the watch."""
        def watched(*args: Any) -> Any:
            began = perf_counter()
            found = call(*args)
            self._inside_s += perf_counter() - began
            self._calls += 1
            return found

        return watched

    def read(self) -> float:
        """Seconds since the last reading."""
        found = self._inside_s - self._calls * self._clock_s
        self._inside_s, self._calls = 0.0, 0
        return found


def costs_of(engine: ml.Engine, tokens: int) -> tuple[list[float], list[float]]:
    """Seconds in telemetry, and seconds in all, of each decoded token of a run."""
    watch, spent, total = StopWatch(), [], []
    for name in CALLS:
        setattr(engine.telemetry, name, watch.around(getattr(engine.telemetry, name)))
    try:
        began = perf_counter()
        for step in engine.stream("class Stack:", max_new_tokens=tokens, stop_at_end=False):
            ended, inside = perf_counter(), watch.read()
            if step.index:
                spent.append(inside)
                total.append(ended - began)
            began = perf_counter()
    finally:
        for name in CALLS:
            delattr(engine.telemetry, name)
    return spent, total


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine = ml.load("pocket")
    costs_of(engine, 20)
    runs = [costs_of(engine, args.tokens) for _ in range(args.runs)]
    spent, total = (statistics.median(one for run in runs for one in run[i]) for i in range(2))
    shares = [statistics.median(run[0]) / statistics.median(run[1]) for run in runs]
    print(f"telemetry: {spent * 1e6:.1f} microseconds of a decoded token of {total * 1e3:.2f} ms, "
          f"{spent / total:.2%} ({min(shares):.2%} to {max(shares):.2%}; {args.runs} runs of {args.tokens} tokens, "
          f"{engine.spec.L} layers x {engine.spec.experts} experts, top-{engine.spec.top_k})")


if __name__ == "__main__":
    main()
