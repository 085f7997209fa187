"""What replays and sweeps let a cluster do: the jobs, and what becomes of their answers.

Knows both sides: what goes out from here, and what a worker does with it. How it gets there stands in ``cluster``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from moe_lab.digests import digest
from moe_lab.errors import ClusterError, MoELabError
from moe_lab.evaluation.cluster import Cluster, check_whole
from moe_lab.evaluation.counting import Counts, Task, count
from moe_lab.evaluation.replay_grid import Plan
from moe_lab.trace import Trace

if TYPE_CHECKING:
    from distributed import Client

    from moe_lab.cache import Held
    from moe_lab.engine import Engine
    from moe_lab.engine.identity import Identity
    from moe_lab.evaluation.measure import Reference, Setting
    from moe_lab.spec import WeightFormat

HELD_SHARE = 0.5
"""Share of a worker's memory in which a sweep keeps experts."""


def counted(client: Client, made: Plan, tick: Callable[[int], object]) -> tuple[
        dict[tuple[int, Task], dict[int, Counts]], dict[tuple[int, Task], MoELabError], ClusterError | None]:
    """All tasks of a replay: counts, what failed, and why the cluster ended before its time, if it did.

    Raises:
        SettingError: a client that is none.
        PolicyError: a policy that would be another on a worker.
    """
    cluster = Cluster(client)
    check_whole(policy for _, task in made.tasks for policy in (task.eviction, task.routing))
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


# --- sweeps: here -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs to score the text as this program would."""

    model: str
    """As it was asked for."""
    folder: str
    weights: WeightFormat
    dense: WeightFormat
    seed: int
    identity: Identity
    """What the worker's engine must be, too."""
    ids: tuple[int, ...]
    window: int

    @property
    def key(self) -> str:
        """One worker keeps one of them open."""
        return digest(self.model, self.folder, self.identity.key, list(self.ids), self.window)


class Away:
    """A sweep's passes, made by a cluster.

    Raises:
        PolicyError: a policy that would be another on a worker.
    """

    def __init__(self, client: Any, engine: Engine, ids: Sequence[int], window: int, identity: Identity,
                 settings: Sequence[Setting]) -> None:
        self._cluster = Cluster(client)
        check_whole(policy for setting in settings for policy in (setting.routing, setting.eviction))
        folder = os.path.dirname(os.path.abspath(engine.files[0]))      # files may be links to somewhere else
        recipe = Recipe(engine.spec.name, folder, cast("WeightFormat", engine.format.name),
                        cast("WeightFormat", engine.dense), engine.seed, identity, tuple(ids), window)
        self._recipe = self._cluster.share(recipe)

    def reference(self) -> tuple[dict[str, Any], Trace]:
        """Losses and routes of the original routing.

        Raises:
            ClusterError: the cluster went away.
            MoELabError: a worker cannot open the model.
        """
        (_, answer), = self._cluster.spread(refer, [((self._recipe,), ())])
        if isinstance(answer, MoELabError):
            raise answer
        record, trace = answer
        return record, trace

    def measured(self, settings: Sequence[Setting], record: dict[str, Any],
                 trace: Trace) -> Iterator[tuple[Setting, Any]]:
        """Each setting with its record as it is done, or with one of the ``FAILURES`` of a setting.

        Raises:
            ClusterError: the cluster went away.
            MoELabError: a worker cannot open the model.
        """
        from moe_lab.evaluation.measure import FAILURES

        if not settings:
            return
        known = self._cluster.share((record, trace))
        for place, answer in self._cluster.spread(score, [((self._recipe, known), (one,)) for one in settings]):
            if isinstance(answer, MoELabError) and not isinstance(answer, FAILURES):
                raise answer
            yield settings[place], answer


# --- sweeps: on a worker ----------------------------------------------------------------------------


_OPEN: dict[str, tuple[Engine, Reference]] = {}
"""The model and text that this worker has at hand; at most one."""
_LOCK = threading.RLock()
"""A model makes one pass at a time, however many threads the worker has."""


def refer(recipe: Recipe) -> tuple[dict[str, Any], Trace]:
    """Record and trace of the original routing.

    Raises:
        MoELabError: the model cannot be opened here, or is another (``ClusterError``).
    """
    with _LOCK:
        _, reference = _opened(recipe)
        if not reference.ready:
            reference.run(_nothing)
        assert reference.record is not None and reference.trace is not None
        return reference.record, reference.trace


def score(recipe: Recipe, known: tuple[dict[str, Any], Trace], setting: Setting) -> dict[str, Any]:
    """The record of one setting beside the ``known`` record and trace of the original routing.

    Raises:
        PolicyError, NotFiniteError: a policy that fails on the way, a loss that is NaN.
        MoELabError: the model cannot be opened here, or is another (``ClusterError``).
    """
    from moe_lab.evaluation.measure import measure

    with _LOCK:
        engine, reference = _opened(recipe)
        if not setting.replayable and reference.runs:
            reference.run(_nothing)
        reference.record, reference.trace = known
        return measure(engine, setting, reference, _nothing)


def _opened(recipe: Recipe) -> tuple[Engine, Reference]:
    """Open the model, once."""
    if recipe.key not in _OPEN:
        import distributed
        import torch

        from moe_lab.engine import load
        from moe_lab.engine.identity import identity
        from moe_lab.evaluation.measure import Reference
        from moe_lab.models import info

        while _OPEN:
            engine, reference = _OPEN.popitem()[1]
            reference.close()
            engine.close()
        worker: Any = distributed.get_worker()
        torch.set_num_threads(worker.state.nthreads)
        model = recipe.folder if Path(recipe.folder).is_dir() else recipe.model
        engine = load(model, cache=info(model).top_k, weights=recipe.weights, dense=recipe.dense, seed=recipe.seed)
        if odd := identity(engine).apart(recipe.identity):
            engine.close()
            raise ClusterError(f"{model!r} as a worker loads it is not the engine here: {', '.join(odd)}. A worker has "
                               "what lies in the files, and what it has installed: give both the same, or leave client "
                               "out")
        _OPEN[recipe.key] = engine, Reference(engine, list(recipe.ids), recipe.window, _held(worker), None, None, None)
    return _OPEN[recipe.key]


def _held(worker: Any) -> Held:
    """Room for experts: a share of what is free, and of what the worker may use."""
    from moe_lab.cache import Held, free_memory

    free = free_memory().nbytes
    return Held(int(HELD_SHARE * min(free, worker.memory_manager.memory_limit or free)))


def _nothing(_: int) -> None:
    """No bar on a worker."""
