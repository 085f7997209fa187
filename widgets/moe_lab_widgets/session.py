"""One engine, watched and driven: what all its dashboards share.

Knows the engine's public surface, its history and the wishes that wait. Knows no widget: views are told
through the few methods of ``View``. Two dashboards on one engine have one session, so they show one truth.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import traceback
from collections.abc import Iterable
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

import moe_lab as ml
from moe_lab.errors import BusyError, MoELabError
from moe_lab_widgets.controls import KINDS, Choices, Refused, words_of, written
from moe_lab_widgets.curve import ReuseCurve
from moe_lab_widgets.history import History
from moe_lab_widgets.publisher import Publisher

SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
"""Fields of ``ml.Sampling``; a dashboard writes 0 for no ``top_k`` and 1 for no ``top_p``."""

WATCHED = 32
"""One note in so many is timed."""
LOOK_S = 0.004
"""Whether a picture is due is looked at so often: seldom enough to cost nothing, often enough for 30 a second."""

_SESSIONS: WeakValueDictionary[int, Session] = WeakValueDictionary()
_LOCK = threading.Lock()


class View(Protocol):
    """What a session tells its dashboards; from any of its threads."""

    def due(self) -> bool:
        """Whether the view can take a picture now."""

    def show(self, snapshot: Any, still: bool) -> None:
        """Draw ``snapshot``; ``still``: it is the last one for a while."""

    def reflect(self) -> None:
        """State, settings or errors have changed."""

    def refused(self, knob: str, message: str, place: str) -> None:
        """A wish was refused, because of ``place`` (the knob, or ``knob.parameter``); empty message: it was granted."""

    def renew_still(self) -> None:
        """The picture in the saved notebook is to be renewed."""


class Session:
    """The engine, its driver if one runs, and everything that views draw.

    ``state`` is one of ready, running, paused, stopped, finished.
    """

    def __init__(self, engine: Any, policies: Iterable[Any] = ()) -> None:
        self.engine = engine
        self.choices = Choices(engine, policies)
        spec = engine.spec
        self.sampling = engine.sampling or ml.Sampling(seed=engine.seed)
        """How the next token is drawn, by the run in progress or by the next one."""
        self.history = History()
        self.curve = ReuseCurve(spec.L, spec.experts, spec.top_k)
        self.state = "ready"
        self.finish = ""
        self.error = ""
        self.exception: BaseException | None = None
        self.prompt = ""
        """What the present run started from, in words; empty where a loop of the user's own brought it."""
        self.sentences: list[str] = []
        self.driver: Any = None
        self.views: list[View] = []
        self.publisher: Publisher | None = None
        self.cost_s = 0.0
        """Processor seconds that dashboards have taken, on the generating thread and beside it."""
        self._steps = 0
        self._look_at = 0.0
        self._seen = engine.telemetry.token
        self._seen_lock = threading.Lock()
        self._shown: Any = None
        self._before: dict[str, Any] = {}
        """Policies before the last mark of their kind."""
        self._wishes: dict[str, Any] = {}
        self._wish_lock = threading.Lock()
        self._settling = threading.RLock()

    @classmethod
    def of(cls, engine: Any, policies: Iterable[Any] = ()) -> Session:
        """The session of ``engine``, made if there is none; ``policies`` are to be offered too."""
        with _LOCK:
            session = _SESSIONS.get(id(engine))
            if session is None:
                session = _SESSIONS[id(engine)] = cls(engine, policies)
            else:
                for policy in policies:
                    session.choices.learn(policy)
        return session

    # --- wishes ---------------------------------------------------------------------------------------

    def wish(self, knob: str, value: Any) -> None:
        """Note a change; any thread. It is made between two tokens, or now if this session does not generate."""
        with self._wish_lock:
            self._wishes[knob] = value
        if self.driver is None:
            self.settle()
        else:
            self.driver.wake()

    def wished(self, knob: str) -> bool:
        """Whether a change of ``knob`` still waits."""
        return knob in self._wishes

    def settle(self) -> None:
        """Make the changes that wait; called by the thread that generates, between two tokens."""
        if not self._wishes:
            return
        with self._settling:
            with self._wish_lock:
                wishes, self._wishes = self._wishes, {}
            for knob, value in wishes.items():
                place = knob
                try:
                    words = self._apply(knob, value)
                except Refused as error:
                    message, place = str(error), f"{knob}.{error.knob}"
                except MoELabError as error:
                    message = str(error)
                except Exception as error:
                    message = f"{type(error).__name__}: {error}"
                else:
                    message = ""
                    if words:
                        self.history.mark(knob, words)
                for view in list(self.views):
                    view.refused(knob, message, place)
        self.tell()
        if self.state != "running":
            self.show()

    def _apply(self, knob: str, value: Any) -> str:
        """Make one change; returns it in words, empty where nothing changed."""
        engine = self.engine
        if knob == "slots":
            if value == engine.cache.slots:
                return ""
            engine.cache.resize(value)
            return f"{value} slots"
        if knob in SAMPLING:
            before, none = self.in_force(), {"top_k": 0, "top_p": 1}
            value = None if value == none.get(knob) else value
            if value == getattr(before, knob):
                return ""
            self.sampling = dataclasses.replace(before, **{knob: value})
            engine.sampling = self.sampling
            return f"no {knob}" if value is None else f"{knob} {value:g}"
        if knob in KINDS:
            before, policy = getattr(engine, knob), self.choices.build(knob, *value)
            if policy == before:
                return ""
            setattr(engine, knob, policy)
            if not self.history.moves(knob):
                self._before[knob] = before
            return words_of(policy, self._before[knob]) or words_of(policy, before)
        if knob == "bandwidth":
            if engine.disk is None or value == engine.disk.bandwidth / 1e6:
                return ""
            engine.disk.bandwidth = value * 1e6
            return f"disk {value:g} MB/s"
        if knob == "reset":
            engine.cache.reset()
            return "cache emptied"
        raise ValueError(f"no such knob: {knob}")

    def in_force(self) -> Any:
        """The ``Sampling`` that draws the next token: the engine's, where it generates."""
        if self.engine.busy and self.engine.sampling is not None:
            self.sampling = self.engine.sampling
        return self.sampling

    def settings(self) -> dict[str, Any]:
        """The engine's own truth, by the names of the dashboards' traits."""
        engine, sampling = self.engine, self.in_force()
        return {
            "temperature": float(sampling.temperature), "top_k": sampling.top_k or 0,
            "top_p": 1.0 if sampling.top_p is None else float(sampling.top_p),
            "repetition_penalty": float(sampling.repetition_penalty), "seed": int(sampling.seed),
            "slots": engine.cache.slots,
            "routing": engine.routing.name, "routing_values": written(engine.routing),
            "eviction": engine.eviction.name, "eviction_values": written(engine.eviction),
            "bandwidth": engine.disk.bandwidth / 1e6 if engine.disk is not None else 0.0,
        }

    # --- a run, told by its driver ----------------------------------------------------------------------

    def began(self, driver: Any, prompt: str = "", sampling: dict[str, Any] | None = None) -> None:
        """A run begins, with ``sampling`` unless it brings its own. Raises ``BusyError`` if one is under way."""
        with _LOCK:
            if self.driver is not None:
                raise BusyError("this engine is already generating; stop it first: lab.stop(), or the Stop button")
            if self.engine.busy:
                raise BusyError("this engine is already generating, from outside the dashboard; let that end first "
                                "(lab.stop() stops only what a dashboard has started)")
            self.driver = driver
        if sampling is not None:
            self.sampling = ml.Sampling(**sampling)
        self.finish = self.error = ""
        self.prompt = prompt
        self.exception = None
        self.sentences = []
        self.history.begin()
        self.publisher = None if driver.foreground else Publisher(self._publish)
        self._become("running")

    def took(self, step: Any) -> None:
        """A token was generated."""
        self._steps += 1
        timed, began = not self._steps % WATCHED, 0.0
        if timed:
            time.thread_time()                # longer than the note, after a token: that call is not the note's
            began = time.thread_time()
        now = self.history.took(step)
        if step.finish:
            self.finish = step.finish
        if not step.index and self.driver.foreground:
            self.tell()                       # a loop of the user's own has brought its own sampling
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            if any(view.due() for view in self.views):
                if self.publisher is not None:
                    self.publisher.ask()
                else:
                    self._publish()           # front ends without updates from threads see this one
        if timed:
            self.cost_s += WATCHED * (time.thread_time() - began)

    def _publish(self) -> None:
        """Send the present state to every view that can take it."""
        views = [view for view in self.views if view.due()]
        if views:
            snapshot = self.engine.telemetry.snapshot(recent=0)      # the rates are counted here
            self.note_routes(snapshot.token)
            for view in views:
                with contextlib.suppress(Exception):     # a page that is gone is no reason to stop generating
                    view.show(snapshot, False)

    def note_routes(self, token: int) -> None:
        """Bring the curve up to date with what has been routed before ``token``."""
        ring = self.engine.telemetry.ring
        with self._seen_lock:
            first = max(self._seen, token - self.curve.window, token - ring.capacity)
            if token > first:
                self.curve.add(ring.ids[np.arange(first, token) % ring.capacity])
            self._seen = max(self._seen, token)

    def explained(self) -> None:
        """One token was asked for: keep the engine's sentences on it."""
        self.sentences = list(self.engine.explain())

    def pauses(self) -> None:
        """Generation stands; the picture becomes exact."""
        self.history.flush()
        self._become("paused")
        self.show()

    def resumes(self) -> None:
        """Generation goes on."""
        self.error = ""
        self.exception = None
        self.history.resume()
        self._become("running")

    def failed(self, exception: BaseException) -> None:
        """The run met an exception: kept, shown, raised by ``result``."""
        self.exception = exception
        self.error = str(exception) if isinstance(exception, MoELabError) else _in_words(exception)

    def ended(self, stopped: bool) -> None:
        """The run is over."""
        self.history.flush()
        if self.publisher is not None:
            self.publisher.end()
            self.cost_s += self.publisher.cpu_s
            self.publisher = None
        with _LOCK:
            self.driver = None
        self.settle()
        self._become("stopped" if stopped or self.exception else "finished")
        self.show()
        self.renew_still()

    def _become(self, state: str) -> None:
        self.state = state
        self.tell()

    # --- views ------------------------------------------------------------------------------------------

    def tell(self) -> None:
        """State or settings have changed."""
        for view in list(self.views):
            view.reflect()

    def after_cell(self) -> None:
        """Code of the user has run: look whether it changed anything."""
        self.tell()
        if self.driver is None:
            snapshot = self.engine.telemetry.snapshot()
            old = self._shown
            if old is None or snapshot.token != old.token or (snapshot.resident != old.resident).any():
                self.show()

    def show(self) -> None:
        """Show every view the present state: generation stands."""
        if self.publisher is not None:
            self.publisher.withdraw()
        self._shown = snapshot = self.engine.telemetry.snapshot()
        self.note_routes(snapshot.token)
        for view in list(self.views):
            with contextlib.suppress(Exception):
                view.show(snapshot, True)

    def renew_still(self) -> None:
        """Renew the pictures in saved notebooks."""
        for view in list(self.views):
            with contextlib.suppress(Exception):     # a front end that is gone has no saved notebook either
                view.renew_still()

    @property
    def cost(self) -> float:
        """Share of the generating time that the dashboards take, 0 to 1."""
        cost = self.cost_s + (self.publisher.cpu_s if self.publisher is not None else 0.0)
        return cost / max(1e-9, self.history.busy_s)

    def cell(self, layer: int, expert: int) -> dict[str, Any]:
        """What there is to say on one expert: plain numbers. Ranks count from 1, 0 is none."""
        telemetry, spec = self.engine.telemetry, self.engine.spec
        layer, expert = int(np.clip(layer, 0, spec.L - 1)), int(np.clip(expert, 0, spec.experts - 1))
        now, ranking = telemetry.snapshot(), self.engine.ranking(layer)
        before, after = (-1, -1) if ranking is None else (int(ranking.before[expert]), int(ranking.after[expert]))
        return {
            "layer": layer, "expert": expert, "number": spec.layers[layer],
            "resident": bool(now.resident[layer, expert]), "used": bool(now.used[layer, expert]),
            "loaded": bool(now.loaded[layer, expert]), "swapped": bool(now.swapped[layer, expert]),
            "before": before + 1, "after": after + 1, "token": now.token,
            "uses": int(now.uses[layer, expert]), "hits": int(now.hits[layer, expert]),
            "age": int(now.token - 1 - now.last_use[layer, expert]) if now.last_use[layer, expert] >= 0 else -1,
            "bytes": spec.expert_bytes[self.engine.format.name],
        }


def _in_words(exception: BaseException) -> str:
    """An exception that is not ours, with the line it comes from."""
    frames = traceback.extract_tb(exception.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(exception).__name__}: {exception}{where}"
