"""A grid of routing x eviction x cache over one text: quality against misses, point by point.

Knows settings and the order of work. The passes are ``measure``'s, figures ``points``'s, what is kept ``keeping``'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm.auto import tqdm

from moe_lab.cache import Held, free_memory
from moe_lab.errors import NotFiniteError, PolicyError, SettingError
from moe_lab.evaluation.grid import grid, text_ids
from moe_lab.evaluation.keeping import Keeping
from moe_lab.evaluation.measure import FAILURES, Reference, Setting, measure
from moe_lab.evaluation.naming import label, listed
from moe_lab.evaluation.points import COLUMNS, Point, point_of
from moe_lab.evaluation.results import Results, open_results
from moe_lab.kernels.belady import belady
from moe_lab.units import real_number

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from distributed import Client

    from moe_lab.engine import Engine
    from moe_lab.spec import ModelSpec

HELD_SHARE = 0.5
"""Share of the free memory in which a sweep keeps experts, so that it reads each once."""

_Answer = tuple[Setting, dict[str, Any] | PolicyError | NotFiniteError | None]


class Sweep:
    """A sweep under way. Iterating computes what is missing and yields each :class:`Point` as it is done.

    Raises:
        PolicyError, NotFiniteError: at the end, where every setting failed; a single one is ``skipped``. NaN under the
            original routing at once.
        SettingError: the engine was changed after this was made.
        ReadError: a weight file is gone, or has changed since it was loaded.
        ClusterError: the cluster went away, or its workers would measure another model.
    """

    def __init__(self, engine: Engine, settings: Sequence[Setting], skipped: Sequence[tuple[str, str]], ids: list[int],
                 window: int, results: Results, client: Client | None = None) -> None:
        self.settings = tuple(settings)
        self.window, self.tokens = window, len(ids) - 1
        self._skipped = list(skipped)
        self._engine, self._ids = engine, ids
        self._points: dict[Setting, Point | None] = {}
        self._failure: PolicyError | NotFiniteError | None = None
        self._keeping = Keeping(engine, ids, window, results, files=client is not None)
        if client is not None and (strange := self._keeping.identity.strange):
            raise SettingError(f"client=...: {strange}. Workers load the model from its files and would measure "
                               "another one; leave client out")
        held = Held(int(free_memory().nbytes * HELD_SHARE))
        self._reference = Reference(engine, ids, window, held, self._keeping.folder, *self._keeping.reference())
        self._bounds: dict[int, float] = {}
        self._client = client

    # --- computing ------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Point]:
        yield from self._run(self.settings)
        self._reference.close()
        if self._failure is not None and not self.points:
            raise self._failure

    def extend(self, settings: Sequence[Setting]) -> list[Point]:
        """Add settings and compute them; what later ones need is kept until the sweep is finished."""
        self.settings = tuple(dict.fromkeys([*self.settings, *settings]))
        return list(self._run(settings))

    def _run(self, settings: Sequence[Setting]) -> Iterator[Point]:
        if any(setting not in self._points for setting in settings):
            self._keeping.check()
        with self._progress() as bar:
            for setting, answer in (self._here if self._client is None else self._there)(settings, bar.update):
                if isinstance(answer, FAILURES):
                    self._failure = self._failure or answer
                    self._skipped.append((_words(setting), str(answer)))
                    self._points[setting] = None
                elif answer is not None:
                    self._points[setting] = self._point(setting, answer)
                if (point := self._points[setting]) is not None:
                    yield point

    def _progress(self) -> Any:
        """A bar in tokens of the passes to come."""
        missing = [s for s in self.settings if s not in self._points and self._keeping.record(s) is None]
        passes = [s for s in missing if not s.replayable]
        again = self._client is None and bool(passes) and self._reference.runs > 0
        before = int(not self._reference.ready or again)
        total = (len(missing) + before) * self.tokens
        return tqdm(total=total, unit="tokens", desc="sweep", delay=2, leave=False, disable=not total)

    def _here(self, settings: Sequence[Setting], tick: Callable[[int], object]) -> Iterator[_Answer]:
        """Each setting with its record, from disk or measured and kept; None where its point is known."""
        for setting in settings:
            if setting in self._points:
                yield setting, None
                continue
            answer: Any = self._keeping.record(setting)
            if not self._reference.ready or (answer is None and not setting.replayable and self._reference.runs):
                self._reference.run(tick, self._keeping.check)
                self._keep_reference()
            if answer is None:
                try:
                    answer = self._measured(setting, tick)
                except FAILURES as error:
                    answer = error
            yield setting, answer

    def _measured(self, setting: Setting, tick: Callable[[int], object]) -> dict[str, Any]:
        record = measure(self._engine, setting, self._reference, tick)
        if not setting.replayable:
            self._keeping.check()           # while the pass ran, too
        return self._keeping.keep(setting, record)

    def _there(self, settings: Sequence[Setting], tick: Callable[[int], object]) -> Iterator[_Answer]:
        """The same from a cluster: first what is on disk, then as it is done."""
        from moe_lab.evaluation.errands import Away

        away = Away(self._client, self._engine, self._ids, self.window, self._keeping.identity, settings)
        if not self._reference.ready:
            self._reference.record, self._reference.trace = away.reference()
            self._keep_reference()
            tick(self.tokens)
        assert self._reference.record is not None and self._reference.trace is not None
        missing = []
        for setting in dict.fromkeys(settings):
            record = None if setting in self._points else self._keeping.record(setting)
            if setting in self._points or record is not None:
                yield setting, record
            else:
                missing.append(setting)
        for setting, answer in away.measured(missing, self._reference.record, self._reference.trace):
            tick(self.tokens)
            yield setting, answer if isinstance(answer, FAILURES) else self._keeping.keep(setting, answer)

    def _keep_reference(self) -> None:
        assert self._reference.record is not None and self._reference.trace is not None
        self._keeping.keep_reference(self._reference.record, self._reference.trace)

    # --- figures --------------------------------------------------------------------------------------

    def _point(self, setting: Setting, record: dict[str, Any]) -> Point:
        reference = self._reference.record
        assert reference is not None
        return point_of(setting, record, reference, self._bound(setting.slots), self._engine.spec)

    def _bound(self, slots: int) -> float:
        """Hit rate of Belady's bound on the original routes."""
        if slots not in self._bounds:
            trace, record = self._reference.trace, self._reference.record
            assert trace is not None and record is not None
            starts = range(0, len(trace), self.window)
            misses = sum(belady(trace.ids[at : at + self.window, layer], trace.experts, slots)
                         for layer in range(trace.L) for at in starts)
            self._bounds[slots] = 1 - misses / trace.uses
        return self._bounds[slots]

    # --- answers --------------------------------------------------------------------------------------

    @property
    def spec(self) -> ModelSpec:
        """The model, in numbers."""
        return self._engine.spec

    @property
    def routes(self) -> bool:
        """Whether the model takes routing policies."""
        return self._engine.routes

    @property
    def points(self) -> tuple[Point, ...]:
        """The points that are done."""
        return tuple(point for s in self.settings if (point := self._points.get(s)) is not None)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """What was left out, in words, each with its reason."""
        return tuple(self._skipped)

    def finish(self) -> Sweep:
        """Compute what is missing."""
        for _ in self:
            pass
        return self

    def to_frame(self, layers: bool = False) -> pd.DataFrame:
        """The finished sweep as pandas, a row a point, or a row for each of its layers."""
        import pandas as pd

        points = self.finish().points
        if layers:
            return pd.DataFrame([{"routing": p.routing, "eviction": p.eviction, "cache": p.cache, **layer}
                                 for p in points for layer in p.layers])
        return pd.DataFrame([[getattr(point, name) for name in COLUMNS] for point in points], columns=COLUMNS)

    def pareto(self) -> tuple[Point, ...]:
        """The points that no other beats in both misses and perplexity, the fewest misses first."""
        front: list[Point] = []
        for point in sorted(self.finish().points, key=lambda p: (p.miss_rate, p.perplexity)):
            if not front or point.perplexity < front[-1].perplexity:
                front.append(point)
        return tuple(front)

    def best(self, max_increase: float = 0.01, cache: int | None = None, sure: bool = False) -> Point:
        """The fewest misses for at most ``max_increase`` of perplexity (0.01 is 1 %).

        ``cache``: among the points of that many slots only. ``sure``: the upper end of the interval must allow it.

        Raises:
            SettingError: an allowance that is none, or no point within it.
        """
        share = math.inf if max_increase == math.inf else real_number(max_increase)
        if share is None or share < 0:
            raise SettingError(f"max_increase={max_increase!r} must be a share like 0.01, 0 or more")
        points = [p for p in self.finish().points if cache is None or p.cache == cache]
        if not points:
            raise SettingError(f"no point has {cache} slots; this sweep has {sorted({p.cache for p in self.points})}")
        good = [p for p in points if (p.increase_high if sure else p.increase) <= max_increase]
        if not good:
            least = min((p.increase for p in points if not math.isnan(p.increase)), default=math.nan)
            raise SettingError(f"no point stays within {max_increase:.2%} of perplexity; the least is {least:.2%}: add "
                               "gentler settings, or routing='original', to the sweep")
        return min(good, key=lambda p: (p.miss_rate, p.increase))

    def figure(self, finish: bool = True) -> go.Figure:
        """Perplexity against miss rate, as plotly; with ``finish=False`` of the points that are done."""
        from moe_lab.evaluation import figures

        if finish:
            self.finish()
        return figures.sweep_figure(self)

    def __len__(self) -> int:
        return len(self.settings)

    def __repr__(self) -> str:
        points = self.points
        head = (f"sweep of {self._engine.spec.name}, {self._engine.precision}: {len(points)} of {len(self)} points, "
                f"{self.tokens:,} tokens in windows of {self.window:,}")
        wide = max([len("routing"), *(len(p.routing) for p in points)])
        other = max([len("eviction"), *(len(p.eviction) for p in points)])
        lines = [f"{'routing':{wide}} {'eviction':{other}} {'cache':>5} {'miss rate':>9} {'perplexity':>10} "
                 f"{'increase':>9} {'95 % interval':>18}"]
        lines += [f"{p.routing:{wide}} {p.eviction:{other}} {p.cache:5d} {p.miss_rate:9.1%} {p.perplexity:10.3f} "
                  f"{p.increase:+9.2%} {f'{p.increase_low:+.2%} {p.increase_high:+.2%}':>18}" for p in points]
        return "\n".join([head, *(lines if points else []), *(f"skipped {what}: {why}" for what, why in self._skipped)])


def _words(setting: Setting) -> str:
    return f"{label(setting.routing)}, {label(setting.eviction)}, {setting.slots} slots"


def sweep(engine: Engine, text: str | Sequence[int], *, routing: Any = ("original", "cache-prior"),
          eviction: Any = "lru", cache: Any = "50%", window: int | None = None,
          store: str | Path | Literal[False] | None = None, client: Client | None = None) -> Sweep:
    """Measure a grid of settings over a text, teacher-forced; exact, one pass a point (PAPER section 5).

    Comes back at once: iterate for one point after another, or ask for ``to_frame()``, ``figure()``, ``pareto()``,
    ``best(max_increase=0.01)``, which finish it. The live engine's policies and slots stay as they are.

    Args:
        text: a string or token ids, at least one window long.
        routing: a name, a policy or its class, or a list of them. Settings with the original routing need no pass of
            their own.
        eviction: the same for eviction.
        cache: slots a layer, ``"50%"`` of the experts, bytes (``"6 GiB"``), or a list. One under the floor is skipped,
            see ``Sweep.skipped``.
        window: tokens after which residents are reset; 1,024, or the model's context where that is shorter.
        store: where results are kept, found again by all that steers them: the weights in the files and in memory,
            formats, settings, text, policies' code, sources; by default a folder in the platform's cache, False for
            nowhere. An interrupted sweep goes on where it was, a repeated one is read. Of a model with code of your
            own (a hook, a replaced forward) nothing is kept, and a line says so.
        client: a ``distributed.Client``: passes are made by the workers of its cluster, each of which opens the model
            once, from the same folder or by its hub name; results are kept here. Iterating yields points as they are
            done.

    The first comparison costs one more pass, with the original routing, whose logits are kept in a scratch file
    (tokens x vocabulary in the model's own precision, up to 4 GiB; windows beyond that are run again for each point).

    Raises:
        PolicyError: an unknown policy, or two different ones under one name.
        SettingError: a text shorter than a window, a lossy routing on a model whose routing is its own, or ``client``
            for a model with code of your own.
        BudgetError: no size reaches the floor.
        ClusterError: while iterating: the cluster went away. What was finished is kept, as points and on disk.

    Example:
        >>> import moe_lab as ml
        >>> engine = ml.load("pocket")                                                     # doctest: +SKIP
        >>> ml.sweep(engine, text, routing=["original", "cache-prior"], cache=["25%", "50%"])  # doctest: +SKIP
    """
    if client is not None:
        from moe_lab.evaluation.cluster import Cluster

        Cluster(client)         # refuse now what is none
    settings, skipped = grid(engine, listed(routing), eviction, cache)
    ids, size = text_ids(engine, text, window)
    return Sweep(engine, settings, skipped, ids, size, open_results(store), client)
