"""Decoding on a slowed disk: Cache-Prior against LRU with the original routing, at the same tokens.

Knows teacher-forced decoding: every setting is fed the very same text token by token, so that no setting profits from
what it wrote itself. The disk is simulated, and every figure says so.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

import moe_lab as ml
from moe_lab.evaluation.disk_model import DiskModel
from moe_lab.pocket.corpus import WORLDS
from moe_lab.routing import Original, RoutingPolicy
from moe_lab.units import format_rate
from reproduction import curves
from reproduction.bench import Bench, Values
from reproduction.claims import HOLDS, NOT, PART, Claim, judged
from reproduction.words import by_world, percent, table

WANTED = 2.0
"""The paper's headline."""
BOTTLENECK = 0.5
"""Share of LRU's time spent waiting for the disk, from which on the disk is the bottleneck."""
PROMPT, BLOCK, DRAWS = 256, 16, 2000
FAST = 1e12
"""Bytes a second of a disk that never makes anyone wait."""


class Run(NamedTuple):
    """Seconds of each decoded token; seconds of waiting, misses and hits of all of them."""

    seconds: list[float]
    waited_s: float
    misses: int
    hits: int


def measure(bench: Bench, main: Values) -> Values:
    """A row for each world and bandwidth; the setting is the best for the allowed perplexity at half."""
    chosen = {w: curves.best(main, w, bench.half, rule="cache-prior") for w in WORLDS}
    tokens, cpus = bench.scale.speed_tokens, os.cpu_count()
    rows = [bench.kept(sys.modules[__name__], [world, rate, curves.words(best), tokens, cpus],
                       lambda world=world, rate=rate, best=best: _row(bench, world, rate, best))
            for world, best in chosen.items() if best is not None for rate in (*bench.scale.bandwidths, None)]
    return {"rows": rows, "tokens": bench.scale.speed_tokens}


def _row(bench: Bench, world: str, rate: str | None, best: Values) -> Values:
    disk = ml.Disk(FAST)
    engine = ml.load(bench.model, cache=bench.half, disk=disk)
    try:
        first = bench.scale.windows * bench.scale.window
        prompt = bench.texts[world][first : first + min(PROMPT, bench.scale.window)]
        ids = bench.texts[world][first + len(prompt) :][: bench.scale.speed_tokens]
        _decode(engine, disk, Original(), prompt, ids[:4], FAST)                    # warm-up, left out
        policies = {"lru": Original(), "prior": curves.best_policy(best)}
        speed = FAST if rate is None else ml.Disk(rate).bandwidth
        runs = {name: _decode(engine, disk, policy, prompt, ids, speed) for name, policy in policies.items()}
        size = engine.spec.expert_bytes[engine.format.name]
        return {"world": world, "bandwidth": None if rate is None else speed, "setting": curves.words(best),
                "format": engine.format.name, "expert_bytes": size, "threads": torch.get_num_threads(),
                **{name: _summary(run) for name, run in runs.items()},
                "ratio": _ratio(runs["lru"].seconds, runs["prior"].seconds)}
    finally:
        engine.close()


def _decode(engine: ml.Engine, disk: ml.Disk, policy: RoutingPolicy, prompt: Sequence[int], ids: Sequence[int],
            bandwidth: float) -> Run:
    """Decode ``ids`` one by one after a prompt at full speed.

    A token takes the way that it takes in ``engine.stream``.
    """
    engine.routing = Original()                         # a change of class, so that the running range begins anew
    engine.routing = policy
    engine.cache.reset()
    disk.bandwidth = FAST
    past = engine.new_past()
    seconds = []
    with torch.inference_mode():
        engine.hf(input_ids=torch.tensor([list(prompt)]), past_key_values=past, use_cache=True, logits_to_keep=1)
        lean = engine.lean_decode(past, len(prompt) + len(ids) + 1)
        before = engine.stats.decode
        disk.bandwidth = bandwidth
        for token in ids:
            began = time.perf_counter()
            if lean is None:
                engine.hf(input_ids=torch.tensor([[token]]), past_key_values=past, use_cache=True, logits_to_keep=1)
            else:
                with engine.one_pass(rows=1, length=1, cached=True):
                    lean(token)
            seconds.append(time.perf_counter() - began)
    after = engine.stats.decode
    waited = after.times.read_s - before.times.read_s
    return Run(seconds, waited, after.misses - before.misses, after.hits - before.hits)


def _summary(run: Run) -> Values:
    tokens, total = len(run.seconds), sum(run.seconds)
    return {"tokens_per_s": tokens / total, "waiting": run.waited_s / total, "median_s": statistics.median(run.seconds),
            "loads_per_token": run.misses / tokens, "miss_rate": run.misses / (run.misses + run.hits)}


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """How many times as fast, and the ends of a 95 % interval: blocks of tokens drawn again, the same for both."""
    blocks = np.array_split(np.stack([slow, fast]), max(1, len(slow) // BLOCK), axis=1)
    sums = np.array([block.sum(1) for block in blocks])
    draw = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    drawn = sums[draw].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return [sum(slow) / sum(fast), float(low), float(high)]


def predicted(row: Values, fast: Values) -> float:
    """The ratio that the model of time behind ``ml.tune`` says, with compute taken from the disk that is never slow."""
    if row["bandwidth"] is None:
        return fast["lru"]["median_s"] / fast["prior"]["median_s"]
    slow, quick = (DiskModel(row["bandwidth"], row["expert_bytes"], fast[name]["median_s"], simulated=True).seconds(
        row[name]["loads_per_token"], 0.0) for name in ("lru", "prior"))
    return slow / quick


def claims(values: Values) -> list[Claim]:
    """Twice as fast?"""
    slow = {w: [r for r in values["rows"] if r["world"] == w and r["bandwidth"] and r["lru"]["waiting"] >= BOTTLENECK]
            for w in WORLDS}
    best = {w: max(rows, key=lambda r: r["ratio"][0], default=None) for w, rows in slow.items()}
    return [judged(
        "section 1", "up to 2 x the speed of plain LRU", "half of the experts resident, a simulated disk that LRU "
        f"waits for at least {percent(BOTTLENECK, 0)} of the time: at least {WANTED:g} x", [
            r is not None and r["ratio"][0] >= WANTED for r in best.values()],
        by_world({w: "no such disk" if r is None else f"{r['ratio'][0]:.2f} x ({r['ratio'][1]:.2f} to "
                  f"{r['ratio'][2]:.2f}) at {format_rate(r['bandwidth'])}" for w, r in best.items()}),
        {HOLDS: "where the disk decides, speed follows the loads; on a faster disk the gain melts into compute",
         PART: "the loads fall by less in one world",
         NOT: "the loads fall by less than half, or compute hides the disk"})]


def section(values: Values) -> str:
    """A table by bandwidth."""
    rows = []
    for r in values["rows"]:
        fast = next(x for x in values["rows"] if x["world"] == r["world"] and x["bandwidth"] is None)
        disk = "never waits" if r["bandwidth"] is None else format_rate(r["bandwidth"])
        rows.append([f"{disk}, {r['world']}", f"{r['lru']['tokens_per_s']:.1f}", f"{r['prior']['tokens_per_s']:.1f}",
                     f"{r['ratio'][0]:.2f} ({r['ratio'][1]:.2f} to {r['ratio'][2]:.2f})", f"{predicted(r, fast):.2f}",
                     percent(r["lru"]["waiting"], 0), percent(r["lru"]["miss_rate"]), percent(r["prior"]["miss_rate"])])
    one = values["rows"][0]
    settings = by_world({r["world"]: r["setting"] for r in values["rows"]})
    return f"""## Speed on a simulated disk

![Tokens a second by bandwidth](pictures/paper-speed.png)

Tokens a second of {values["tokens"]} decoded tokens, fed one by one (the same text for both settings; held out, and not
among those that the setting was chosen on) after a prompt of at most {PROMPT}; half of the experts resident,
{one["format"]}, {one["expert_bytes"] / 1000:.0f} kB an expert, threads: {one["threads"]}. The **disk is simulated**:
reads are held back to its bandwidth. Setting: {settings}. *Predicted* is the ratio by the model of time that `ml.tune`
uses.

{table(["disk, world", "LRU, original", "Cache-Prior", "ratio", "predicted", "LRU waits", "misses, LRU", "Cache-Prior"],
       rows)}
"""
