"""Recorded traces run through eviction policies: no model needed.

Knows traces, policies and slots. Without ``routing=`` the routes stay as they were recorded, so a replay says what
eviction alone does; Belady's bound beside every row says what it could do at best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from moe_lab.errors import ClusterError, MoELabError, SettingError
from moe_lab.evaluation.counting import Counts, Task, count
from moe_lab.evaluation.disk_model import DiskModel
from moe_lab.evaluation.replay_grid import Plan, plan
from moe_lab.evaluation.replay_rows import Failed, Found, reason_of, rows_of
from moe_lab.evaluation.replayed import Replay, ReplayRow
from moe_lab.eviction import EvictionName, EvictionPolicy
from moe_lab.routing import RoutingPolicy
from moe_lab.trace import Trace

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Replay", "ReplayRow", "replay"]

Eviction = EvictionName | str | EvictionPolicy | type[EvictionPolicy]
Routing = str | RoutingPolicy | type[RoutingPolicy]


def replay(trace: Trace | Mapping[str, Trace] | Sequence[Trace], *,
           eviction: Eviction | Sequence[Eviction] = "lru", cache: int | str | Iterable[int | str] = "50%",
           routing: Routing | Sequence[Routing] | None = None, pooled: bool = False, disk: DiskModel | None = None,
           train: float | Trace | None = None, window: int | None = None, seed: int = 0,
           client: Client | None = None) -> Replay:
    """Run traces through eviction policies at several cache sizes, layer by layer from an empty start.

    Args:
        trace: one, a list of them or ``{"name": trace}``; all of each is used: take ``trace.decode`` for the generated
            tokens alone, ``trace[100:]`` for some.
        eviction: a name, a policy or its class, or a list of them.
        cache: slots a layer: ``16``, ``"16 slots"``, ``"50%"`` of the experts, ``"all"`` sizes from K on, or a list.
        routing: policies that route the recorded logits again, ``"original"`` for the routes as they are. Approximate,
            and marked so: other experts would have changed what later layers see. Only for models whose router ranks by
            its logits: where the recorded experts show another ranking (a selection bias, groups), the row is skipped.
        pooled: one budget for all layers: ``cache`` counts the slots of the whole pool, its uses come token by token,
            layer by layer, and the experts of the present layer are protected. ``"all"``: L slots, 2 L, and so on. A
            pool may be smaller than what one token uses. Policies that count uses (ticks) count those of all layers.
        disk: predicts tokens/s: ``ml.DiskModel("200 MB/s", expert_bytes="6 MiB", compute_s="20 ms")``, or
            ``ml.DiskModel.of(engine)``.
        train: for policies that learn: a share of each trace, 0.5 for its first half, which all rows then leave out;
            or another trace. Without it they are taken as they are.
        window: tokens of the windows over which the bootstrap draws; the square root of the tokens, 16 at least,
            unless told. Residents stay from window to window.
        seed: for policies that draw, and for the bootstrap.
        client: a ``distributed.Client``: the work goes to its cluster. Same figures.

    Returns:
        A :class:`Replay`: one row per trace, routing, policy and size, with Belady's bound, regret and intervals. A row
        that cannot be (under the floor, or a policy that needs weights or logits which the trace lacks) says why in
        ``skipped``, and the rest goes on.

    Raises:
        BudgetError, PolicyError: no row is left; an unknown policy, one that does not compile, or two different
            policies under one name.
        TraceError: a trace without tokens.
        ClusterError: the cluster went away; ``error.finished`` is a Replay of the rows that were done.

    Example:
        >>> import numpy as np
        >>> trace = Trace(ids=np.array([[[0, 1]], [[1, 2]], [[0, 2]]]), experts=4)
        >>> replay(trace, eviction=["lru", "fifo"], cache=[2, "75%"])
        replay of Trace: 3 tokens (0 prefill, 3 decode), 1 layer x 4 experts, top-2, no weights
        eviction cache hit_rate miss_rate bound_hit_rate regret
        lru          2    33.3%     66.7%          33.3%   1.00
        lru          3    50.0%     50.0%          50.0%   1.00
        fifo         2    33.3%     66.7%          33.3%   1.00
        fifo         3    50.0%     50.0%          50.0%   1.00
    """
    if disk is not None and not isinstance(disk, DiskModel):
        raise SettingError(f"disk={disk!r} is not a disk model; type disk=ml.DiskModel('200 MB/s', "
                           "expert_bytes='6 MiB', compute_s='20 ms'), or ml.DiskModel.of(engine)")
    made = plan(trace, eviction, cache, routing, pooled, train, window, seed)
    with tqdm(total=made.steps, desc="replay", unit="layer", delay=2, leave=False) as bar:
        if client is None:
            found, failed = _count_here(made, bar.update)
        else:
            from moe_lab.evaluation.errands import counted

            found, failed, gone = counted(client, made, bar.update)
            if gone is not None:
                raise ClusterError(str(gone), finished=_assembled(made, found, failed, disk)) from gone
    whole = _assembled(made, found, failed, disk)
    if all(row.skipped for row in whole):
        raise next(reason for cell in made.cells if (reason := reason_of(made, cell, failed)) is not None)
    return whole


def _count_here(made: Plan, tick: Callable[[int], object]) -> tuple[Found, Failed]:
    """All tasks in turn; a policy that fails leaves the others alone."""
    found: dict[tuple[int, Task], dict[int, Counts]] = {}
    failed: dict[tuple[int, Task], MoELabError] = {}
    for place, task in made.tasks:
        try:
            found[place, task] = count(made.traces[place], task, tick)
        except MoELabError as error:
            failed[place, task] = error
    return found, failed


def _assembled(made: Plan, found: Found, failed: Failed, disk: DiskModel | None) -> Replay:
    """Rows of all cells."""
    rows = rows_of(made, found, failed, disk)
    words = "\n".join(f"{name + ': ' if len(made.traces) > 1 else ''}{trace!r}"
                      for name, trace in zip(made.names, made.traces, strict=True))
    return Replay(tuple(rows), words, made.window, disk, made.routed)
