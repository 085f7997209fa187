"""What replays and sweeps let a cluster do: the jobs, and what becomes of their answers.

Knows both sides: what goes out from here, and what a worker does with it. How it gets there stands in ``cluster``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil

from moe_lab.errors import ClusterError, MoELabError, PolicyError
from moe_lab.evaluation.cluster import Cluster
from moe_lab.evaluation.counting import Counts, Task, count
from moe_lab.evaluation.replay_grid import Plan
from moe_lab.evaluation.results import checkpoint, digest
from moe_lab.trace import Trace

if TYPE_CHECKING:
    from distributed import Client

    from moe_lab.engine import Engine
    from moe_lab.evaluation.measure import Reference, Setting
    from moe_lab.spec import WeightFormat

HELD_SHARE = 0.5
"""Share of a worker's memory in which a sweep keeps experts."""


def counted(client: Client, made: Plan, tick: Callable[[int], object]) -> tuple[
        dict[tuple[int, Task], dict[int, Counts]], dict[tuple[int, Task], MoELabError], ClusterError | None]:
    """All tasks of a replay: counts, what failed, and why the cluster ended before its time, if it did.

    Raises:
        SettingError: a client that is none.
    """
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


# --- sweeps: here -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs to score the text as this program would."""

    model: str
    """As it was asked for."""
    folder: str
    weights: WeightFormat
    seed: int
    content: str
    """A hash of the checkpoint."""
    ids: tuple[int, ...]
    window: int

    @property
    def key(self) -> str:
        """One worker keeps one of them open."""
        return digest(self.model, self.folder, self.weights, self.seed, self.content, list(self.ids), self.window)


class Away:
    """A sweep's passes, made by a cluster."""

    def __init__(self, client: Any, engine: Engine, ids: Sequence[int], window: int) -> None:
        self._cluster = Cluster(client)
        folder = str(Path(engine.files[0]).resolve().parent)
        recipe = Recipe(engine.spec.name, folder, cast("WeightFormat", engine.format.name), engine.seed,
                        checkpoint(engine.files), tuple(ids), window)
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
                 trace: Trace) -> Iterator[tuple[Setting, dict[str, Any] | PolicyError]]:
        """Each setting with its record as it is done, or with the error of its policy.

        Raises:
            ClusterError: the cluster went away.
            MoELabError: a worker cannot open the model.
        """
        if not settings:
            return
        known = self._cluster.share((record, trace))
        for place, answer in self._cluster.spread(score, [((self._recipe, known), (one,)) for one in settings]):
            if isinstance(answer, MoELabError) and not isinstance(answer, PolicyError):
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
        PolicyError: a policy that fails on the way.
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

        from moe_lab.cache import Held
        from moe_lab.engine import load
        from moe_lab.evaluation.measure import Reference
        from moe_lab.models import info

        while _OPEN:
            engine, reference = _OPEN.popitem()[1]
            reference.close()
            engine.close()
        worker: Any = distributed.get_worker()
        torch.set_num_threads(worker.state.nthreads)
        model = recipe.folder if Path(recipe.folder).is_dir() else recipe.model
        engine = load(model, cache=info(model).top_k, weights=recipe.weights, seed=recipe.seed)
        if checkpoint(engine.files) != recipe.content:
            engine.close()
            raise ClusterError(f"{model!r} on a worker is not the checkpoint that lies here; give both the same files")
        _OPEN[recipe.key] = engine, Reference(engine, list(recipe.ids), recipe.window, Held(_room(worker)), None, None,
                                              None)
    return _OPEN[recipe.key]


def _room(worker: Any) -> int:
    """Bytes of experts to keep: a share of what is free, and of what the worker may use."""
    free: int = psutil.virtual_memory().available
    return int(HELD_SHARE * min(free, worker.memory_manager.memory_limit or free))


def _nothing(_: int) -> None:
    """No bar on a worker."""
