"""Expert uses a second: replay by LRU and others, and the walk with its ranking. One core, one command.

    python benchmarks/replay.py
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np

from moe_lab.eviction import FIFO, LFU, LRU, AgedLFU, EvictionPolicy, Random
from moe_lab.kernels.belady import belady
from moe_lab.kernels.replay import replay_layer
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.reuse import lru_hit_rates
from moe_lab.kernels.walk import Walked, walk
from moe_lab.routing import CachePrior, Original, RoutingPolicy

E, K, C = 64, 8, 32


def seconds(work: Callable[[], object], runs: int) -> float:
    """Median CPU seconds of this thread, after one run to warm up: other programs on the machine do not count."""
    work()
    found = []
    for _ in range(runs):
        began = time.thread_time()
        work()
        found.append(time.thread_time() - began)
    return statistics.median(found)


def layer(routing: RoutingPolicy, eviction: EvictionPolicy) -> LayerState:
    return LayerState.new(E, K, C, routing, eviction)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", type=int, default=20_000)
    options.add_argument("--runs", type=int, default=9)
    args = options.parse_args()
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal((args.tokens, E)) + rng.standard_normal(E)).astype(np.float32)
    weights = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float32)
    weights /= weights.sum(1, keepdims=True)
    ids = walk(layer(Original(), LRU()), logits, weights).ids
    uses = ids.size
    print(f"{platform.processor() or platform.machine()}, one core, CPU time of the thread, median of {args.runs}; "
          f"E = {E}, K = {K}, C = {C}, {args.tokens:,} tokens of skewed normal logits\n")
    print(f"{'':42} {'M uses/s':>9} {'miss':>7}")
    for eviction in (LRU(), FIFO(), LFU(), AgedLFU(), Random()):
        took = seconds(lambda policy=eviction: replay_layer(ids, None, layer(Original(), policy)), args.runs)
        miss = 1 - replay_layer(ids, None, layer(Original(), eviction)).mean()
        print(f"replay {eviction!r:35} {uses / took / 1e6:9.1f} {miss:7.3f}")
    took = seconds(lambda: belady(ids, E, C), args.runs)
    print(f"{'Belady':42} {uses / took / 1e6:9.1f} {belady(ids, E, C) / uses:7.3f}")
    took = seconds(lambda: lru_hit_rates(ids, E), args.runs)
    print(f"{'LRU at all sizes by reuse distances':42} {uses / took / 1e6:9.1f} {1 - lru_hit_rates(ids, E)[C]:7.3f}")
    for routing in (Original(), CachePrior(penalty=0.1), CachePrior(penalty=0.5)):
        took = seconds(lambda policy=routing: walk(layer(policy, LRU()), logits, weights), args.runs)
        miss = 1 - walk(layer(routing, LRU()), logits, weights).hits.mean()
        print(f"walk {routing!r:37} {uses / took / 1e6:9.1f} {miss:7.3f}")
    rows = [(logits[t : t + 1], weights[t : t + 1]) for t in range(2000)]
    state, out = layer(CachePrior(penalty=0.1), LRU()), Walked.empty(1, K)
    fresh = seconds(lambda: [walk(state, *row) for row in rows], args.runs) / len(rows)
    given = seconds(lambda: [walk(state, *row, out) for row in rows], args.runs) / len(rows)
    print(f"\none token a call (CachePrior, LRU): {fresh * 1e6:.1f} µs, into given arrays {given * 1e6:.1f} µs")


if __name__ == "__main__":
    main()
