"""One engine, watched and driven: what all its dashboards share.

Knows the engine's public surface, its history and the wishes that wait. Knows no widget: views are told
through the few methods of ``View``. Two dashboards on one engine have one session, so they show one truth.
"""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Iterable
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

import moe_lab as ml
from moe_lab.engine.applied import acting
from moe_lab.errors import BusyError, MoELabError
from moe_lab_widgets.controls import Choices
from moe_lab_widgets.curve import ReuseCurve
from moe_lab_widgets.following import Follower
from moe_lab_widgets.history import History
from moe_lab_widgets.publisher import Publisher
from moe_lab_widgets.pulse import Pulse
from moe_lab_widgets.wishes import Wishes

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
        self.wishes = Wishes(engine, self.choices)
        spec = engine.spec
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
        self.foreign = False
        """Whether code outside the dashboards generates."""
        self._follower = Follower(engine, self.history)
        self._settling = threading.RLock()
        self._pulse: Pulse | None = None

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

    def join(self, view: View) -> None:
        """A view has come."""
        self.views.append(view)
        if self._pulse is None:
            self._pulse = Pulse(self.look)

    def leave(self, view: View) -> None:
        """A view has gone; with the last one ends what the session runs, and nothing looks at the engine any more."""
        if view in self.views:
            self.views.remove(view)
        if not self.views:
            if self.driver is not None:
                self.driver.stop()
            if self._pulse is not None:
                self._pulse.end()
                self._pulse = None
            self.exception = None       # its traceback holds this session, and so the engine

    # --- wishes ---------------------------------------------------------------------------------------

    def wish(self, knob: str, value: Any) -> None:
        """Note a change; any thread. It is made between two tokens, or now if this session does not generate."""
        self.wishes.note(knob, value)
        if self.driver is None:
            self.settle()
        else:
            self.driver.wake()

    def settle(self) -> None:
        """Make the changes that wait; called by the thread that generates, between two tokens."""
        if not self.wishes:
            return
        with self._settling, acting("dashboard"):
            for answer in self.wishes.make():
                for view in list(self.views):
                    view.refused(*answer)
            self._follower.follow()
        self.tell()
        if self.state != "running":
            self.show()

    def stop(self) -> None:
        """End the run after the present token, whoever began it."""
        if self.driver is not None:
            self.driver.stop()
        else:
            self.engine.stop()
            self.look()

    # --- a run, told by its driver ----------------------------------------------------------------------

    def began(self, driver: Any, prompt: str = "", sampling: dict[str, Any] | None = None) -> None:
        """A run begins, with ``sampling`` unless it brings its own. Raises ``BusyError`` if one is under way."""
        with _LOCK:
            if self.driver is not None:
                raise BusyError("this engine is already generating; stop it first: lab.stop(), or the Stop button")
            if self.engine.busy:
                raise BusyError("this engine is already generating, from outside the dashboard; let that end, or end "
                                "it: lab.stop(), or the Stop button")
            self.driver = driver
        if sampling is not None:
            self.wishes.sampling = ml.Sampling(**sampling)
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
        if self._follower.follow():           # what was changed before this token
            self.tell()
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
        self.look()

    def look(self) -> None:
        """See what was done without a word: changes, a run from outside, routes."""
        foreign = self.driver is None and self.engine.busy
        if self._follower.follow() or foreign != self.foreign:
            self.foreign = foreign
            self.tell()
        if foreign:
            self._publish()
        elif self.driver is None:
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
