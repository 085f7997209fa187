"""Expert uses a second: replay by every policy, bounds, pools, and the walk with its ranking. One core, one command.

    python benchmarks/replay.py [--tokens 20000] [--runs 9] [--trace file]

Synthetic logits (skewed normal) and, where a recorded trace is given, its own routes over and over.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import moe_lab as ml
from moe_lab.eviction import EVICTION, LRU, EvictionPolicy, LearnedEviction
from moe_lab.kernels.belady import belady
from moe_lab.kernels.replay import replay_layer
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.reuse import lru_profile
from moe_lab.kernels.walk import walk
from moe_lab.kernels.walked import Walked
from moe_lab.routing import CachePrior, Original, RoutingPolicy

E, K, LAYERS = 64, 8, 16
GOALS = {"lru": 10.0}
OTHER_GOAL = 4.0
"""Million uses a second; of LRU the pass over all sizes counts."""


def seconds(work: Callable[[], object], runs: int) -> float:
    """Median CPU seconds of this thread, after one run to warm up: other programs on the machine do not count."""
    work()
    found = []
    for _ in range(runs):
        began = time.thread_time()
        work()
        found.append(time.thread_time() - began)
    return statistics.median(found)


def layer(C: int, routing: RoutingPolicy | None = None, eviction: EvictionPolicy | None = None) -> LayerState:
    return LayerState.new(E, K, C, routing or Original(), eviction or LRU())


def policies(ids: np.ndarray, runs: int) -> None:
    """Every policy that needs no logits, at a quarter and half of the experts."""
    fitted = LearnedEviction.fit(ml.Trace(ids=ids[:2000, None], experts=E))
    kinds = [kind() for kind in EVICTION.values() if "logits" not in kind.needs and kind is not LearnedEviction]
    print(f"{'replay':28} {'C = 16':>16} {'C = 32':>16}   M uses/s (miss rate)")
    for policy in [*kinds, fitted]:
        cells = []
        for C in (16, 32):
            took = seconds(lambda C=C, policy=policy: replay_layer(ids, None, layer(C, eviction=policy)), runs)
            miss = 1 - replay_layer(ids, None, layer(C, eviction=policy)).mean()
            goal = GOALS.get(policy.name, OTHER_GOAL)
            cells.append(f"{ids.size / took / 1e6:6.1f} ({miss:.3f}){' ' if ids.size / took / 1e6 >= goal else '<'}")
        print(f"{policy.name:28} {cells[0]:>16} {cells[1]:>16}")
    took = seconds(lambda: lru_profile(ids, E, 100), runs)
    print(f"{'LRU, all sizes at once':28} {ids.size / took / 1e6:7.1f}  ({E - K + 1} sizes: "
          f"{(E - K + 1) * ids.size / took / 1e6:,.0f} M uses/s)")
    times = {C: seconds(lambda C=C: belady(ids, E, C), runs) for C in (16, 32)}
    cells = [f"{ids.size / took / 1e6:7.1f} ({belady(ids, E, C) / ids.size:.3f})" for C, took in times.items()]
    print(f"{'Belady':28} {cells[0]:>16} {cells[1]:>16}")


def pools(ids: np.ndarray, runs: int) -> None:
    """One budget for all layers: many experts in one cache."""
    rng = np.random.default_rng(2)
    renamed = [rng.permutation(E)[ids[: len(ids) // LAYERS]] + E * place for place in range(LAYERS)]
    keys, M = np.stack(renamed, axis=1).reshape(-1, K).astype(np.int32), E * LAYERS
    took = seconds(lambda: lru_profile(keys, M, 100), runs)
    print(f"\npool of {LAYERS} layers, {M:,} experts: LRU at all sizes {keys.size / took / 1e6:.1f}, ", end="")
    took = seconds(lambda: belady(keys, M, M // 2), runs)
    print(f"Belady at half {keys.size / took / 1e6:.1f} M uses/s")


def whole_call(ids: np.ndarray, runs: int) -> None:
    """``ml.replay`` itself: intervals, bounds and rows included."""
    trace = ml.Trace(ids=np.stack([ids[: len(ids) // 4]] * 4, axis=1), experts=E)
    took = seconds(lambda: ml.replay(trace, eviction="lru", cache="all"), runs)
    rows = len(ml.replay(trace, cache="all"))
    print(f"\nml.replay, LRU at {rows} sizes with Belady's bound and intervals on each: {took * 1e3:.0f} ms for "
          f"{trace.uses:,} uses")


def walks(logits: np.ndarray, weights: np.ndarray, runs: int) -> None:
    """Ranking and settling together."""
    print()
    for routing in (Original(), CachePrior(penalty=0.1), CachePrior(penalty=0.5)):
        took = seconds(lambda policy=routing: walk(layer(32, policy), logits, weights), runs)
        miss = 1 - walk(layer(32, routing), logits, weights).hits.mean()
        print(f"walk {routing!r:37} {len(logits) * K / took / 1e6:9.1f} M uses/s ({miss:.3f})")
    rows = [(logits[t : t + 1], weights[t : t + 1]) for t in range(2000)]
    state, out = layer(32, CachePrior(penalty=0.1)), Walked.empty(1, K)
    fresh = seconds(lambda: [walk(state, *row) for row in rows], runs) / len(rows)
    given = seconds(lambda: [walk(state, *row, out) for row in rows], runs) / len(rows)
    print(f"one token a call (CachePrior, LRU): {fresh * 1e6:.1f} µs, into given arrays {given * 1e6:.1f} µs")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--tokens", type=int, default=20_000)
    options.add_argument("--runs", type=int, default=9)
    options.add_argument("--trace", type=Path, help="a recorded trace; its layers over and over, one after the other")
    args = options.parse_args()
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal((args.tokens, E)) + rng.standard_normal(E)).astype(np.float32)
    weights = np.exp(logits - logits.max(1, keepdims=True)).astype(np.float32)
    weights /= weights.sum(1, keepdims=True)
    ids = walk(layer(32), logits, weights).ids
    print(f"{platform.processor() or platform.machine()}, one core, CPU time of the thread, median of {args.runs}; "
          f"E = {E}, K = {K}; < marks what misses the goal (10 M uses/s for LRU, 4 for the others)\n")
    print(f"{args.tokens:,} tokens of skewed normal logits")
    policies(ids, args.runs)
    if args.trace is not None:
        trace = ml.Trace.read(args.trace)
        if (trace.experts, trace.K) != (E, K):
            options.error(f"this benchmark is laid out for {E} experts, top-{K}, not {trace!r}")
        own = trace.ids.transpose(1, 0, 2).reshape(-1, K)
        print(f"\n{args.trace.name}, layer after layer")
        policies(np.ascontiguousarray(np.resize(own, (args.tokens, K))), args.runs)
    pools(ids, args.runs)
    whole_call(ids, args.runs)
    walks(logits, weights, args.runs)


if __name__ == "__main__":
    main()
