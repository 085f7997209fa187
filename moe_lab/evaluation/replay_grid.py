"""From what a user types to the cells of a replay; all that can be refused is refused here, before any work.

Knows traces, policies and sizes. Counts nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moe_lab.errors import BudgetError, MoELabError, PolicyError, SettingError, TraceError
from moe_lab.evaluation.counting import Task
from moe_lab.evaluation.naming import listed, one_name_one_policy
from moe_lab.evaluation.ranked import disagreeing
from moe_lab.eviction import EVICTION, LRU, EvictionPolicy, LearnedEviction
from moe_lab.kernels.replay import lacks
from moe_lab.kernels.residency import LayerState
from moe_lab.parameters import ByLayer
from moe_lab.policy import Policy, check_layers, resolve
from moe_lab.routing import ROUTING, Original, RoutingPolicy
from moe_lab.trace import Trace
from moe_lab.units import real_number, seed_number, whole_number

_CACHE = re.compile(r"\s*(\d*\.?\d+)\s*(%|slots?)\s*", re.IGNORECASE)
_LEAST_WINDOW = 16


@dataclass(frozen=True)
class Cell:
    """One row to be: what it is called by, and the task that counts for it, or why there is none."""

    trace: int
    routing: RoutingPolicy | None
    eviction: EvictionPolicy
    slots: int
    task: Task | None
    reason: MoELabError | None
    seen: float
    """Share of the trace that the eviction policy was trained on."""

    @property
    def routed(self) -> bool:
        """Whether the recorded logits are routed again."""
        return self.routing is not None and self.routing.lossy


@dataclass(frozen=True)
class Plan:
    """Everything that a replay has to count, and the rows it makes of it."""

    names: tuple[str, ...]
    traces: tuple[Trace, ...]
    cells: tuple[Cell, ...]
    pooled: bool
    routed: bool
    window: int
    """Tokens of a window of the bootstrap, for the longest trace."""
    windows: tuple[int, ...]
    """The same for each trace."""
    seed: int

    def base(self, place: int) -> Task:
        """What LRU does on the recorded routes of a trace, at all sizes that its rows have."""
        return self._bases[place]

    @cached_property
    def _bases(self) -> tuple[Task, ...]:
        return tuple(Task(LRU(), self._sizes(place), None, self.pooled, self.windows[place], self.seed)
                     for place in range(len(self.traces)))

    def bound(self, size: int) -> Task:
        """Belady's bound on the recorded routes."""
        return Task(None, (size,), None, self.pooled)

    def task_of(self, cell: Cell) -> Task | None:
        """The task that counts for a cell; LRU is counted at all sizes at once."""
        plain = cell.task is not None and not cell.routed and type(cell.eviction) is LRU
        return self.base(cell.trace) if plain else cell.task

    def _sizes(self, place: int) -> tuple[int, ...]:
        return tuple(sorted({cell.slots for cell in self.cells if cell.trace == place and cell.task is not None}))

    @cached_property
    def tasks(self) -> tuple[tuple[int, Task], ...]:
        """Every task once, with the place of its trace."""
        todo: dict[tuple[int, Task], None] = {}
        for place in range(len(self.traces)):
            if sizes := self._sizes(place):
                todo[place, self.base(place)] = None
                todo |= {(place, self.bound(size)): None for size in sizes}
        return tuple(todo | {(cell.trace, task): None for cell in self.cells
                             if (task := self.task_of(cell)) is not None})

    @property
    def steps(self) -> int:
        """Layers times sizes."""
        return sum(len(task.sizes) * (1 if self.pooled else self.traces[place].L) for place, task in self.tasks)


def plan(trace: Any, eviction: Any, cache: Any, routing: Any, pooled: bool, train: Any, window: int | None,
         seed: int) -> Plan:
    """The plan of a replay.

    Raises:
        TraceError: no trace, or one without tokens.
        PolicyError: an unknown policy, one that does not compile, or two different ones under one name.
        SettingError: an empty list, a size that is none, a pool with routing, a share that is none.
    """
    named = _named(trace)
    evictions = [resolve(one, EVICTION, "eviction") for one in listed(eviction)]
    routings = [None] if routing is None else [resolve(one, ROUTING, "routing") for one in listed(routing)]
    asked = listed(cache)
    if not evictions or not asked or not routings:
        raise SettingError("nothing to replay: give at least one eviction policy and one cache size, and a routing or "
                           "None")
    if pooled and routing is not None:
        raise SettingError("routing=... with pooled=True: the residents of one layer would depend on the others; take "
                           "one of the two")
    asked_window, seed = whole_number(window), seed_number(seed)
    if window is not None and (asked_window is None or asked_window < 1):
        raise SettingError(f"window={window!r} must be a number of tokens, 1 or more, or None")
    one_name_one_policy(evictions)
    one_name_one_policy([one for one in routings if one is not None])
    _compiled(evictions, routings)
    sizes = [[size for one in asked for size in slots(one, each, pooled)] for each in named.values()]
    traces, trained = _trained(list(named.values()), evictions, train)
    windows = tuple(max(_LEAST_WINDOW, round(math.sqrt(len(each)))) if asked_window is None else asked_window
                    for each in traces)
    seen = _seen(traces, trained)
    again = any(one is not None and one.lossy for one in routings)
    apart = [disagreeing(each) if again and each.logits is not None else 0.0 for each in traces]
    cells = [_cell(place, each, one, policy, size, pooled, windows[place], seed, seen.get((place, policy), 0.0),
                   apart[place])
             for place, each in enumerate(traces) for one in routings for policy in trained[place]
             for size in sizes[place]]
    return Plan(tuple(named), tuple(traces), tuple(cells), pooled, routing is not None, max(windows), windows, seed)


def _named(trace: Any) -> dict[str, Trace]:
    """Traces by name: a mapping's, the trace's own, or a number."""
    if isinstance(trace, Mapping):
        named = {str(name): one for name, one in trace.items()}
    elif isinstance(trace, Trace):
        named = {"": trace}
    else:
        named = {}
        for one in listed(trace):
            own = str(one.meta.get("name") or one.meta.get("model") or "trace") if isinstance(one, Trace) else "trace"
            numbered = (own if i == 1 else f"{own} {i}" for i in range(1, len(named) + 2))
            named[next(name for name in numbered if name not in named)] = one
    if not named:
        raise TraceError("nothing to replay: give at least one trace")
    for one in named.values():
        if not isinstance(one, Trace):
            raise TraceError(f"replay takes a Trace, not {one!r}; type ml.replay(ml.Trace.read('file.npz'))")
        if one.uses == 0:
            raise TraceError(f"nothing to replay: {one!r} holds no expert use")
    return named


def _compiled(evictions: list[EvictionPolicy], routings: list[RoutingPolicy | None]) -> None:
    """Compile, and refuse, before the long work."""
    for policy in evictions:
        LayerState.new(2, 1, 1, Original(), policy.at(0))
    for routing in routings:
        LayerState.new(2, 1, 1, routing.at(0) if routing is not None else Original(), LRU())


def slots(cache: int | str, trace: Trace, pooled: bool = False) -> list[int]:
    """Slots a layer, or of the pool, for ``16``, ``"16 slots"``, ``"50%"`` or ``"all"``; at most all experts."""
    experts = trace.experts * (trace.L if pooled else 1)
    if cache == "all":
        return [size for size in range(trace.L, experts + 1, trace.L) if size >= trace.K] if pooled else list(
            range(trace.K, experts + 1))
    C = whole_number(cache)
    if isinstance(cache, str) and (match := _CACHE.fullmatch(cache)):
        number = min(float(match.group(1)), 1e9)        # more than there can be, and no infinity
        C = round(number / 100 * experts) if match.group(2) == "%" else int(number) if number == int(number) else None
    if C is None:
        raise SettingError(f"cache={cache!r} is not understood; type 16, '16 slots', '50%' or 'all' (a trace knows no "
                           "bytes)")
    return [min(C, experts)]


def _trained(traces: list[Trace], evictions: list[EvictionPolicy], train: Any) -> tuple[list[Trace],
                                                                                       list[list[EvictionPolicy]]]:
    """The traces to judge on, and for each the policies, those that learn trained."""
    if train is None:
        return traces, [evictions] * len(traces)
    if isinstance(train, Trace):
        learned = [_fitted(policy, train) for policy in evictions]
        return traces, [learned] * len(traces)
    share = real_number(train)
    if share is None or not 0 < share < 1:
        raise SettingError(f"train={train!r} must be a share of each trace between 0 and 1, such as 0.5, or a Trace")
    cuts = [max(1, min(len(trace) - 1, round(share * len(trace)))) for trace in traces]
    rest = [trace[cut:] for trace, cut in zip(traces, cuts, strict=True)]
    if any(not trace.uses for trace in rest):
        raise TraceError(f"train={train!r} leaves nothing to judge on; give a longer trace or a smaller share")
    return rest, [[_fitted(policy, trace[:cut]) for policy in evictions]
                  for trace, cut in zip(traces, cuts, strict=True)]


def _fitted(policy: EvictionPolicy, trace: Trace) -> EvictionPolicy:
    """The policy trained on ``trace``, where its class can learn and it has not yet."""
    fit = getattr(type(policy), "fit", None)
    return fit(trace) if fit is not None and policy == type(policy)() else policy


def _seen(traces: list[Trace], trained: list[list[EvictionPolicy]]) -> dict[tuple[int, EvictionPolicy], float]:
    """Share of each trace's tokens that a policy was trained on."""
    return {(place, policy): policy.seen(trace) for place, trace in enumerate(traces) for policy in trained[place]
            if isinstance(policy, LearnedEviction)}


def _cell(place: int, trace: Trace, routing: RoutingPolicy | None, policy: EvictionPolicy, size: int, pooled: bool,
          window: int, seed: int, seen: float, apart: float) -> Cell:
    """One row, or why it cannot be. ``apart`` is the share of places whose experts are not the best of the logits."""
    again = routing if routing is not None and routing.lossy else None
    reason = (_too_small(size, trace, pooled) or _by_layer(policy, trace, pooled) or
              _by_layer(again, trace, pooled) or _lacking(again, policy, trace, pooled) or
              _ranked_otherwise(again, trace, apart))
    task = None if reason is not None else Task(policy, (size,), again, pooled, window, seed)
    return Cell(place, routing, policy, size, task, reason, seen)


def _too_small(size: int, trace: Trace, pooled: bool) -> BudgetError | None:
    if size >= trace.K:
        return None
    if pooled:
        return BudgetError(f"{size} slots in the pool, under the floor: a layer uses {trace.K} experts of a token at "
                           f"once; type cache={trace.K} or more, {trace.L * trace.K} to hold all that a token uses")
    return BudgetError(f"{size} slots a layer, under the floor: one token uses {trace.K} of {trace.experts} experts at "
                       f"once in each of {trace.L} layers; type cache={trace.K} or more")


def _by_layer(policy: Policy | None, trace: Trace, pooled: bool) -> PolicyError | None:
    """A parameter by layer must fit the layers, and a pool has none."""
    if policy is None:
        return None
    if pooled and any(isinstance(value, ByLayer) for value in policy.values().values()):
        return PolicyError(f"{policy!r} differs by layer, and one pool serves all of them; give one number")
    try:
        check_layers(policy, trace.L, "trace")
    except PolicyError as error:
        return error
    return None


def _ranked_otherwise(routing: RoutingPolicy | None, trace: Trace, apart: float) -> PolicyError | None:
    """Logits cannot be routed again where the model did not rank by them."""
    if routing is None or not apart:
        return None
    return PolicyError(f"routing policy {routing.name!r} would rank by the recorded logits, and this model ranked by "
                       f"something else, such as a selection bias or groups of experts: in {apart:.2%} of "
                       f"{len(trace) * trace.L:,} places (a token in a layer) the {trace.K} best logits are not the "
                       "experts that were used, beyond rounding; leave routing= out, or type routing='original'")


def _lacking(routing: RoutingPolicy | None, policy: EvictionPolicy, trace: Trace, pooled: bool) -> PolicyError | None:
    """What a policy needs and the trace does not hold."""
    if routing is not None and trace.logits is None:
        return PolicyError(f"routing policy {routing.name!r} needs router logits, which this trace does not hold; "
                           "record them: ml.record(model, text, tokenizer, logits=True)")
    lacking = lacks(policy, trace.weights is not None or routing is not None, trace.logits is not None and not pooled)
    if not lacking:
        return None
    if pooled and "logits" in lacking and trace.logits is not None:
        return PolicyError(f"policy {policy.name!r} needs logits layer by layer, and one pool serves all layers")
    return PolicyError(f"policy {policy.name!r} needs {lacking}, which this trace does not hold; run it in an engine, "
                       "or record a trace that has them: ml.record(model, text, tokenizer, logits=True)")

