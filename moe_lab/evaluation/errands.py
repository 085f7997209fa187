"""What replays and sweeps let a cluster do: the jobs, and what becomes of their answers.

Knows both sides: what goes out from here, and what a worker does with it. How it gets there stands in ``cluster``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moe_lab.errors import ClusterError, MoELabError
from moe_lab.evaluation.cluster import Cluster
from moe_lab.evaluation.counting import Counts, Task, count
from moe_lab.evaluation.replay_grid import Plan

if TYPE_CHECKING:
    from distributed import Client


def counted(client: Client, made: Plan, tick: Callable[[int], object]) -> tuple[
        dict[tuple[int, Task], dict[int, Counts]], dict[tuple[int, Task], MoELabError], ClusterError | None]:
    """All tasks of a replay: counts, what failed, and why the cluster ended before its time, if it did."""
    cluster = Cluster(client)
    found: dict[tuple[int, Task], dict[int, Counts]] = {}
    failed: dict[tuple[int, Task], MoELabError] = {}
    try:
        shared = [cluster.share(trace) for trace in made.traces]
        for i, answer in cluster.spread(count, [((shared[place],), (task,)) for place, task in made.tasks]):
            place, task = made.tasks[i]
            if isinstance(answer, MoELabError):
                failed[place, task] = answer
            else:
                found[place, task] = answer
            tick(len(task.sizes) * (1 if made.pooled else made.traces[place].L))
    except ClusterError as error:
        return found, failed, error
    return found, failed, None
