"""Recorded traces run through eviction policies: no model needed.

Knows traces, eviction policies and slots. Routing stays as it was recorded, so a replay says what eviction alone
does; Belady's bound beside every row says what it could do at best.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from moe_lab.errors import BudgetError, PolicyError, SettingError, TraceError
from moe_lab.eviction import EVICTION, EvictionName, EvictionPolicy
from moe_lab.kernels.belady import belady
from moe_lab.kernels.replay import lacks, replay_layer
from moe_lab.kernels.residency import LayerState
from moe_lab.policy import resolve
from moe_lab.routing import Original
from moe_lab.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

Eviction = EvictionName | str | EvictionPolicy | type[EvictionPolicy]
_CACHE = re.compile(r"\s*(\d*\.?\d+)\s*(%|slots?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class ReplayRow:
    """One eviction policy at one cache size. Rates are 0 to 1, over all expert uses of all layers."""

    eviction: str
    """Name of the policy, with its parameters where they are not the defaults."""
    cache: int
    """Slots a layer."""
    hit_rate: float
    miss_rate: float
    bound_hit_rate: float
    """Hit rate of Belady's bound: the best any eviction could do on this trace."""


@dataclass(frozen=True, repr=False)
class Replay:
    """What :func:`replay` found: a table that prints itself."""

    rows: tuple[ReplayRow, ...]
    trace: str
    """The trace in words."""

    def to_frame(self) -> pd.DataFrame:
        """The rows as pandas: eviction, cache, hit_rate, miss_rate, bound_hit_rate."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows], columns=list(ReplayRow.__dataclass_fields__))

    def __iter__(self) -> Iterator[ReplayRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        wide = max(len("eviction"), *(len(row.eviction) for row in self.rows))
        lines = [f"{row.eviction:{wide}} {row.cache:6d} {row.hit_rate:9.1%} {row.miss_rate:10.1%} "
                 f"{row.bound_hit_rate:15.1%}" for row in self.rows]
        head = f"{'eviction':{wide}} {'cache':>6} {'hit_rate':>9} {'miss_rate':>10} {'bound_hit_rate':>15}"
        return "\n".join([f"replay of {self.trace}", head, *lines])


def replay(trace: Trace, *, eviction: Eviction | Sequence[Eviction] = "lru",
           cache: int | str | Sequence[int | str] = "50%", seed: int = 0) -> Replay:
    """Run a trace through eviction policies at several cache sizes, layer by layer from an empty start.

    Args:
        trace: the whole of it is used; take ``trace.decode`` for the generated tokens alone.
        eviction: a name, a policy or its class, or a list of them.
        cache: slots a layer: ``16``, ``"16 slots"``, ``"50%"`` of the experts, or a list of them.
        seed: for policies that draw.

    Returns:
        A :class:`Replay`: one row per policy and size, Belady's bound on each.

    Raises:
        BudgetError: fewer slots than a token needs at once.
        PolicyError: an unknown policy, or one that needs what the trace does not hold.
        TraceError: a trace without tokens.

    Example:
        >>> trace = Trace(ids=np.array([[[0, 1]], [[1, 2]], [[0, 2]]]), experts=4)
        >>> replay(trace, eviction=["lru", "fifo"], cache=[2, "75%"])
        replay of Trace: 3 tokens (0 prefill, 3 decode), 1 layer x 4 experts, top-2, no weights
        eviction  cache  hit_rate  miss_rate  bound_hit_rate
        lru           2     33.3%      66.7%           33.3%
        lru           3     50.0%      50.0%           50.0%
        fifo          2     33.3%      66.7%           33.3%
        fifo          3     50.0%      50.0%           50.0%
    """
    if not isinstance(trace, Trace):
        raise TraceError(f"replay takes a Trace, not {trace!r}; type ml.replay(ml.Trace.read('file.npz'))")
    if trace.uses == 0:
        raise TraceError(f"nothing to replay: {trace!r} holds no expert use")
    policies = [resolve(one, EVICTION, "eviction") for one in _listed(eviction)]
    sizes = [slots(one, trace) for one in _listed(cache)]
    if not policies or not sizes:
        raise SettingError("nothing to replay: give at least one eviction policy and one cache size")
    for policy in policies:         # compile, and refuse, before the long work
        LayerState.new(trace.experts, trace.K, trace.K, Original(), policy)
        if lacking := lacks(policy, trace.weights is not None, trace.logits is not None):
            raise PolicyError(f"policy {policy.name!r} needs {lacking}, which this trace does not hold; run it in an "
                              "engine, or replay a trace that has them")
    layers = [np.ascontiguousarray(trace.ids[:, layer]) for layer in range(trace.L)]
    weights = [None if trace.weights is None else trace.weights[:, layer] for layer in range(trace.L)]
    logits = [None if trace.logits is None else trace.logits[:, layer] for layer in range(trace.L)]
    steps = (len(policies) * len(sizes) + len(set(sizes))) * trace.L
    with tqdm(total=steps, desc="replay", unit="layer", delay=2, leave=False) as bar:
        def misses(ids: np.ndarray, gates: np.ndarray | None, layer: int, policy: EvictionPolicy, C: int) -> int:
            state = LayerState.new(trace.experts, trace.K, C, Original(), policy, layer, seed)
            hits = replay_layer(ids, gates, state, logits[layer])
            bar.update()
            return int(np.count_nonzero(ids >= 0) - np.count_nonzero(hits))

        def bound(ids: np.ndarray, C: int) -> int:
            bar.update()
            return belady(ids, trace.experts, C)

        best = {C: sum(bound(ids, C) for ids in layers) for C in set(sizes)}
        found = [(policy, C, sum(misses(ids, weights[layer], layer, policy, C) for layer, ids in enumerate(layers)))
                 for policy in policies for C in sizes]
    uses = trace.uses
    rows = [ReplayRow(_label(policy), C, hit_rate=1 - missed / uses, miss_rate=missed / uses,
                      bound_hit_rate=1 - best[C] / uses) for policy, C, missed in found]
    return Replay(tuple(rows), repr(trace))


def slots(cache: int | str, trace: Trace) -> int:
    """Slots a layer for ``16``, ``"16 slots"`` or ``"50%"``; no more than there are experts."""
    if isinstance(cache, (int, np.integer)) and not isinstance(cache, bool):
        C = int(cache)
    elif isinstance(cache, str) and (match := _CACHE.fullmatch(cache)):
        number = float(match.group(1))
        C = round(number / 100 * trace.experts) if match.group(2) == "%" else int(number)
    else:
        raise SettingError(f"cache={cache!r} is not understood; type 16, '16 slots' or '50%' (a trace knows no bytes)")
    if C < trace.K:
        raise BudgetError(f"cache={cache!r} gives {C} slots a layer, under the floor: one token uses {trace.K} of "
                          f"{trace.experts} experts at once in each of {trace.L} layers; type cache={trace.K} or more")
    return min(C, trace.experts)


def _listed(one_or_more: Any) -> list[Any]:
    return list(one_or_more) if isinstance(one_or_more, (list, tuple, set, range, np.ndarray)) else [one_or_more]


def _label(policy: EvictionPolicy) -> str:
    more = ", ".join(f"{key}={value:.6g}" for key, value in policy.values().items())
    return policy.name if policy == type(policy)() else f"{policy.name}({more})"
