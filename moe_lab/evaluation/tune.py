"""The fastest setting that costs no more quality than allowed, found by measuring.

Knows sweeps and a model of time: a token computes, and waits for what it loads. Quality is measured on the text;
seconds are predicted, from the loads and from what the disk and one short generation show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moe_lab.cache import slots_for
from moe_lab.engine.setup import check_place, setup_of
from moe_lab.errors import SettingError, TraceError
from moe_lab.evaluation.disk_model import DiskModel
from moe_lab.evaluation.grid import grid, text_ids
from moe_lab.evaluation.measure import Setting
from moe_lab.evaluation.naming import label, listed
from moe_lab.evaluation.points import Point
from moe_lab.evaluation.replay import Replay, replay
from moe_lab.evaluation.results import open_results
from moe_lab.evaluation.sweep import Sweep
from moe_lab.eviction import EVICTION, LRU, EvictionPolicy
from moe_lab.policy import resolve
from moe_lab.routing import CachePrior, Original, RoutingPolicy
from moe_lab.trace import Trace
from moe_lab.units import real_number

if TYPE_CHECKING:
    from moe_lab.engine import Engine

EVICTIONS = ("lru", "lfu", "aged-lfu", "slru", "s3-fifo", "arc", "least-stale")
"""Candidates unless told: those that a record of routes is enough for and that need no training."""
PENALTIES = (0.05, 0.1, 0.2, 0.4, 0.8)
_HALVINGS = 3


@dataclass(frozen=True, repr=False)
class Tuned:
    """A setting with what speaks for it. ``write`` keeps it; ``ml.load(..., setup="file")`` takes it."""

    routing: RoutingPolicy
    eviction: EvictionPolicy
    cache: int
    """Slots a layer."""
    seconds_per_token: float
    """Predicted, see ``costs``."""
    plain_seconds_per_token: float
    """The same for the original routing with LRU in as many slots."""
    miss_rate: float
    increase: float
    """Perplexity over the original routing's, less 1; 0 where the routing is the original one."""
    increase_low: float
    increase_high: float
    max_increase: float
    costs: DiskModel
    evidence: Sweep | Replay = field(compare=False)
    """Every setting that was tried; ``evidence.to_frame()``."""
    engine: Engine = field(compare=False)

    def write(self, path: str | Path) -> None:
        """Write the small file that ``ml.load(..., setup=path)`` takes.

        Raises:
            SettingError: a place that cannot be written to.
        """
        spec, engine = self.engine.spec, self.engine
        numbers = {name: getattr(self, name) for name in (
            "seconds_per_token", "plain_seconds_per_token", "miss_rate", "increase", "increase_low", "increase_high",
            "max_increase")}
        evidence = {**{k: v if math.isfinite(v) else None for k, v in numbers.items()}, "costs": asdict(self.costs),
                    "model": spec.name, "tried": len(self.evidence)}
        setup_of(self.routing, self.eviction, self.cache, engine.format.name, spec, evidence,
                 dense=engine.dense).write(path)

    def __repr__(self) -> str:
        disk = "a simulated disk" if self.costs.simulated else "the disk as it was measured"
        sure = "" if self.increase_high <= self.max_increase else "; the interval reaches beyond what was allowed"
        return (f"{label(self.routing)}, {label(self.eviction)}, {self.cache} slots a layer: "
                f"{self.seconds_per_token * 1e3:.3g} ms a token predicted, "
                f"{self.plain_seconds_per_token / self.seconds_per_token:.2f} x the original routing with LRU\n"
                f"  miss rate {self.miss_rate:.1%}, perplexity {self.increase:+.2%} ({self.increase_low:+.2%} to "
                f"{self.increase_high:+.2%}), allowed {self.max_increase:+.2%}{sure}\n"
                f"  {self.costs.compute_s * 1e3:.3g} ms of compute a token, {disk}; "
                f"{len(self.evidence)} settings tried, see .evidence")


def tune(engine: Engine, text: str | Sequence[int] | Trace, *, max_increase: float = 0.01,
         cache: int | str | None = None, routing: Any = None, eviction: Any = EVICTIONS, window: int | None = None,
         compute_s: float | None = None, setup: str | Path | None = None,
         store: str | Path | Literal[False] | None = None) -> Tuned:
    """Find the setting with the fewest predicted seconds a token that raises perplexity by ``max_increase`` at most.

    Evictions are compared on the original routes first, which needs one pass. Then Cache-Prior's penalty is raised,
    with one and two protected experts, until the loss is reached, and the evictions that were best are tried there.

    Args:
        text: a string or token ids to measure on; or a trace of this model, and then only evictions are compared.
        cache: slots a layer, ``"50%"``, bytes; None keeps the engine's.
        routing: policies to try instead of the search over Cache-Prior.
        eviction: policies to try.
        window, store: as in ``ml.sweep``.
        compute_s: seconds a token without loads; None measures it, which generates some tokens with the live engine.
        setup: a file to write the result to, for ``ml.load(..., setup=...)``.

    Raises:
        SettingError: an allowance that is none, a text shorter than a window, a ``setup`` that cannot be written, or no
            setting within the allowance.
        TraceError: a trace of a model of another shape.
        PolicyError, BudgetError: as in ``ml.sweep``.

    Example:
        >>> import moe_lab as ml
        >>> engine = ml.load("pocket", cache="50%", disk=ml.Disk("200 MB/s"))               # doctest: +SKIP
        >>> ml.tune(engine, text, max_increase=0.01, setup="fast.json")                     # doctest: +SKIP
        >>> engine = ml.load("pocket", setup="fast.json")                                   # doctest: +SKIP
    """
    if (share := real_number(max_increase)) is None or share < 0:
        raise SettingError(f"max_increase={max_increase!r} must be a share like 0.01, 0 or more")
    if compute_s is not None and ((seconds := real_number(compute_s)) is None or seconds < 0):
        raise SettingError(f"compute_s={compute_s!r} must be seconds a token, 0 or more, or None to measure it")
    if setup is not None:
        check_place(setup)
    slots = engine.cache.slots if cache is None else slots_for(cache, engine.spec, engine.format.name)
    evictions = list(dict.fromkeys([LRU(), *(resolve(one, EVICTION, "eviction") for one in listed(eviction))]))
    if isinstance(text, Trace):
        if routing is not None:
            raise SettingError("a trace says nothing of other routings; give a text to try routing=..., or leave it "
                               "out")
        found = _by_trace(engine, text, evictions, slots, max_increase, compute_s)
    else:
        candidates = None if routing is None else [Original(), *listed(routing)]
        plan, _ = grid(engine, candidates or [Original()], evictions, slots)
        ids, size = text_ids(engine, text, window)
        first = [s for s in plan if not s.routing.lossy]
        sweep = Sweep(engine, first, [], ids, size, open_results(store))
        costs = DiskModel.of(engine, compute_s, prompt=ids[:8])
        _try_out(sweep, first, [s for s in plan if s.routing.lossy] if candidates else None, max_increase, costs)
        found = _choose(engine, sweep, max_increase, costs)
    if setup is not None:
        found.write(setup)
    return found


def _try_out(sweep: Sweep, first: list[Setting], more: list[Setting] | None, limit: float, costs: DiskModel) -> None:
    """Measure what may be best: the originals, then ``more`` settings, or a search over Cache-Prior."""
    originals = sorted(sweep.extend(first), key=lambda p: _seconds(p, costs))
    spec, slots = sweep.spec, first[0].slots
    if more is not None:
        sweep.extend(more)
    elif sweep.routes and limit > 0 and slots < spec.experts:
        lru, rivals = first[0].eviction, [p.setting.eviction for p in originals[:2]]
        for keep_top in range(1, min(2, spec.top_k - 1) + 1):
            def at(penalty: float, keep_top: int = keep_top) -> Point | None:
                policy = CachePrior(penalty=penalty, keep_top=keep_top)
                return next(iter(sweep.extend([Setting(policy, lru, slots)])), None)

            highest(at, limit)
        good = [p for p in sweep.points if p.setting.routing.lossy and p.increase <= limit]
        if good:
            best = min(good, key=lambda p: _seconds(p, costs)).setting.routing
            sweep.extend([Setting(best, rival, slots) for rival in rivals])
    sweep.finish()


def highest(at: Callable[[float], Point | None], limit: float) -> float:
    """The highest penalty found whose increase is at most ``limit``, 0 for none: up the ladder, then by halving.

    ``at`` measures a penalty; None where it could not.
    """
    low, high = 0.0, math.inf
    for penalty in PENALTIES:
        point = at(penalty)
        if point is None or not point.increase <= limit:
            high = penalty
            break
        low = penalty
    for _ in range(_HALVINGS if math.isfinite(high) else 0):
        middle = round((low + high) / 2, 4)
        point = at(middle)
        if point is None or not point.increase <= limit:
            high = middle
        else:
            low = middle
    return low


def _choose(engine: Engine, sweep: Sweep, limit: float, costs: DiskModel) -> Tuned:
    points = sweep.points
    best = min((p for p in points if p.increase <= limit), key=lambda p: (_seconds(p, costs), p.increase))
    plain = next(p for p in points if not p.setting.routing.lossy and isinstance(p.setting.eviction, LRU))
    return Tuned(best.setting.routing, best.setting.eviction, best.cache, _seconds(best, costs),
                 _seconds(plain, costs), best.miss_rate, best.increase, best.increase_low, best.increase_high, limit,
                 costs, sweep, engine)


def _seconds(point: Point, costs: DiskModel) -> float:
    return costs.seconds(point.loads_per_token, point.waits_per_token)


def _by_trace(engine: Engine, trace: Trace, evictions: list[EvictionPolicy], slots: int, limit: float,
              compute_s: float | None) -> Tuned:
    """Evictions on recorded routes."""
    spec = engine.spec
    if (trace.L, trace.experts, trace.K) != (spec.L, spec.experts, spec.top_k):
        raise TraceError(f"this trace is of another model: {trace.L} layers x {trace.experts} experts, top-{trace.K}, "
                         f"where {spec.name!r} has {spec.L} layers x {spec.experts} experts, top-{spec.top_k}; record "
                         "one of this model: engine.score(text).trace")
    costs = DiskModel.of(engine, compute_s)
    found = replay(trace, eviction=evictions, cache=slots, seed=engine.seed, disk=costs)
    rows = [(policy, row) for policy, row in zip(evictions, found, strict=True) if not row.skipped]
    policy, row = min(rows, key=lambda pair: 1 / pair[1].predicted_tokens_per_s)
    return Tuned(Original(), policy, slots, 1 / row.predicted_tokens_per_s, 1 / rows[0][1].predicted_tokens_per_s,
                 row.miss_rate, 0.0, 0.0, 0.0, limit, costs, found, engine)
