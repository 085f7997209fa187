"""From counts to rows: rates, bounds, intervals and predictions of a replay.

Knows arithmetic. Counts nothing and prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_lab.errors import MoELabError
from moe_lab.evaluation.counting import Counts, Task
from moe_lab.evaluation.disk_model import DiskModel
from moe_lab.evaluation.intervals import Bootstrap
from moe_lab.evaluation.naming import label
from moe_lab.evaluation.replay_grid import Cell, Plan
from moe_lab.evaluation.replayed import NAN, ReplayRow

Found = Mapping[tuple[int, Task], Mapping[int, Counts]]
"""Counts by trace and task, then by size."""
Failed = Mapping[tuple[int, Task], MoELabError]
"""Why a task has none."""


def rows_of(made: Plan, found: Found, failed: Failed, disk: DiskModel | None) -> list[ReplayRow]:
    """A row for every cell, in their order."""
    rows: dict[int, ReplayRow] = {}
    for place in range(len(made.traces)):
        cells = [(i, cell) for i, cell in enumerate(made.cells) if cell.trace == place]
        done = [(i, cell) for i, cell in cells if _whole(made, cell, found)]
        ends = _intervals(made, place, [cell for _, cell in done], found)
        for (i, cell), between in zip(done, ends, strict=True):
            rows[i] = _row(made, cell, found, between, disk)
        for i, cell in cells:
            if i not in rows:
                reason = reason_of(made, cell, failed)
                rows[i] = ReplayRow(**_head(made, cell), skipped="not counted" if reason is None else str(reason))
    return [rows[i] for i in range(len(made.cells))]


def reason_of(made: Plan, cell: Cell, failed: Failed) -> MoELabError | None:
    """Why a cell has no figures, if it is known."""
    if cell.reason is not None:
        return cell.reason
    task = made.task_of(cell)
    return None if task is None else failed.get((cell.trace, task))


def _whole(made: Plan, cell: Cell, found: Found) -> bool:
    """Whether all that a row is made of has been counted."""
    task = made.task_of(cell)
    return task is not None and all((cell.trace, one) in found for one in (
        task, made.base(cell.trace), made.bound(cell.slots)))


def _head(made: Plan, cell: Cell) -> dict[str, Any]:
    """What a row is called by."""
    trace = made.traces[cell.trace]
    experts = trace.experts * (trace.L if made.pooled else 1)
    return {"eviction": label(cell.eviction), "cache": cell.slots, "trace": made.names[cell.trace],
            "pooled": made.pooled, "routing": "original" if cell.routing is None else label(cell.routing),
            "approximate": cell.routed, "share": cell.slots / experts, "seen": cell.seen,
            "holds_token": not made.pooled or cell.slots >= trace.L * trace.K}


def _intervals(made: Plan, place: int, cells: list[Cell], found: Found) -> list[dict[str, Any]]:
    """Ends of the intervals of each cell's miss rate and of its difference to LRU's."""
    if not cells:
        return []
    own = [found[place, made.task_of(cell) or made.base(place)][cell.slots] for cell in cells]
    lru = [found[place, made.base(place)][cell.slots] for cell in cells]
    strap = Bootstrap(own[0].uses.shape[1], made.seed)
    rates, others = (strap.ratios(np.stack([one.misses.sum(0) for one in counts]).astype(np.float64),
                                  np.stack([one.uses.sum(0) for one in counts]).astype(np.float64))
                     for counts in (own, lru))
    low, high = strap.ends(rates)
    under, over = strap.ends(rates - others)
    return [{"miss_low": float(a), "miss_high": float(b), "over_lru_low": float(c), "over_lru_high": float(d)}
            for a, b, c, d in zip(low, high, under, over, strict=True)]


def _row(made: Plan, cell: Cell, found: Found, between: dict[str, Any], disk: DiskModel | None) -> ReplayRow:
    trace, place = made.traces[cell.trace], cell.trace
    task = made.task_of(cell)
    assert task is not None
    counts, lru = found[place, task][cell.slots], found[place, made.base(place)][cell.slots]
    recorded = found[place, made.bound(cell.slots)][cell.slots]
    bound = recorded.misses[:, 0] if counts.bound is None else counts.bound
    by_layer = [_rates(*(int(number) for number in one))
                for one in zip(counts.misses.sum(1), counts.uses.sum(1), bound, strict=True)]
    whole = _rates(int(counts.misses.sum()), int(counts.uses.sum()), int(bound.sum()))
    T = len(trace)
    loads, waits = counts.misses.sum() / T, counts.waits.sum() / T
    return ReplayRow(
        **_head(made, cell), **whole, **between,
        over_lru=whole["miss_rate"] - _rate(int(lru.misses.sum()), int(lru.uses.sum())),
        loads_per_token=float(loads),
        predicted_tokens_per_s=NAN if disk is None else disk.tokens_per_s(float(loads), float(waits)),
        swapped_share=_rate(counts.swapped, int(counts.uses.sum())),
        mass_kept=counts.mass / (T * trace.L) if cell.routed else 1.0,
        original_bound_hit_rate=1 - _rate(int(recorded.misses.sum()), int(recorded.uses.sum())),
        layers=() if made.pooled else tuple({"layer": layer, **one} for layer, one in enumerate(by_layer)),
    )


def _rates(misses: int, uses: int, bound: int) -> dict[str, Any]:
    missed = _rate(misses, uses)
    return {"hit_rate": 1 - missed, "miss_rate": missed, "bound_hit_rate": 1 - _rate(bound, uses),
            "regret": misses / bound if bound else 1.0}


def _rate(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
