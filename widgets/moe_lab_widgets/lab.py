"""The live dashboard: one widget, its state in documented traits, its pictures in binary messages.

Knows the session and the page. Decides nothing about models, policies or caches: what a user turns becomes
a wish of the session, and what the engine then says is what the traits show.
"""

from __future__ import annotations

import base64
import contextlib
import threading
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from IPython import get_ipython
from IPython.display import display, update_display

from moe_lab.engine.applied import acting
from moe_lab.errors import MoELabError, SettingError
from moe_lab.units import format_bytes
from moe_lab_widgets import cells, controls, still
from moe_lab_widgets.driver import ForegroundDriver, Result, ThreadDriver
from moe_lab_widgets.page import Page
from moe_lab_widgets.session import Session
from moe_lab_widgets.state import LabState, Setting
from moe_lab_widgets.wishes import SAMPLING

_SETTINGS = ("slots", "routing", "routing_values", "eviction", "eviction_values", "bandwidth", *SAMPLING)


class Lab(LabState):
    """The live dashboard of an engine.

    >>> import moe_lab as ml
    >>> from moe_lab_widgets import Lab
    >>> lab = Lab(ml.load("pocket", cache="25%"))      # doctest: +SKIP
    >>> lab                                            # doctest: +SKIP
    >>> lab.start("def fibonacci(n):")                 # doctest: +SKIP

    ``policies`` are policies of your own, routing or eviction, to offer beside the shipped ones. All other
    keywords are traits. Every parameter of every policy is a trait too (``lab.penalty``), None while the present policy
    has no such parameter, so that ``ipywidgets.link((slider, "value"), (lab, "penalty"))`` works.

    A dashboard holds its engine until ``lab.close()``, or until the cell that made it is run again and makes another.
    """

    def __init__(self, engine: Any, *, policies: Iterable[Any] = (), **traits: Any) -> None:
        if unknown := [name for name in traits if name not in self.trait_names()]:
            raise SettingError(f"Lab has no setting {unknown[0]!r}; it has {', '.join(self.class_own_traits())}")
        for kind in controls.KINDS:
            if kind in traits and not isinstance(traits[kind], str):
                setattr(engine, kind, traits.pop(kind))
        self._opened: Session | None = Session.of(engine, policies)
        self._agreed: dict[str, Any] = self._session.wishes.settings()
        self._reflecting = 0
        self._page = Page(self._session, lambda content, buffers: self.send(content, buffers))
        self._shell = get_ipython()
        self._display_id = uuid.uuid4().hex
        self._displayed = False
        self._options: dict[str, Any] = {}
        super().__init__(offered=self._session.choices.describe(), model=controls.spec_of(engine),
                         **{"uid": self._display_id, **self._agreed, **traits})
        self._page.outbox.fps = self.fps
        self._name_parameters()
        self.observe(self._turned, list(_SETTINGS))
        self.observe(lambda change: setattr(self._page.outbox, "fps", change["new"]), "fps")
        self.on_msg(self._heard)
        self._session.join(self)
        self._listen_to_cells(True)
        self.reflect()
        cells.move_in(self, cells.present(self._shell))
        for name in set(traits) & set(_SETTINGS):
            self._wish(name)

    # --- for users --------------------------------------------------------------------------------------

    @property
    def _session(self) -> Session:
        if self._opened is None:
            raise SettingError("this dashboard is closed and has let its engine go; make another: Lab(engine)")
        return self._opened

    @property
    def engine(self) -> Any:
        """The engine that is shown. Raises ``SettingError`` once the dashboard is closed."""
        return self._session.engine

    def start(self, prompt: Any = None, **options: Any) -> None:
        """Generate in the background; the cell returns at once.

        ``prompt`` (text or token ids) and ``options`` (those of ``engine.stream``) take the places of the traits
        of that name; options that are no traits (``stop``, ``stop_at_end``) hold for the Run button too. Raises
        ``BusyError`` if the engine generates already, and what ``engine.stream`` raises.
        """
        self._start(prompt, options, paused=False)

    def pause(self) -> None:
        """Stand still after the present token; ``resume()`` goes on."""
        if self._session.driver is not None:
            self._session.driver.pause()

    def resume(self) -> None:
        """Go on after a pause."""
        if self._session.driver is not None:
            self._session.driver.resume()

    def one_token(self) -> None:
        """Generate one token, stand still, and say what happened. Starts a run if there is none."""
        if self._session.driver is None:
            self._start(None, {}, paused=True)
        else:
            self._session.driver.one_token()

    def stop(self) -> None:
        """End the run after the present token; also one that code outside the dashboard began (``engine.stop()``)."""
        self._session.stop()

    def reset(self) -> None:
        """Empty the cache at the next token."""
        self._session.wish("reset", True)

    def watch(self, stream: Iterable[Any]) -> Iterator[Any]:
        """Show the steps of ``engine.stream(...)`` while a loop of your own takes them.

        For scripts and front ends that do not show updates from threads. Controls may only act between cells
        here, since the kernel is busy with the loop.

        >>> for step in lab.watch(engine.stream("def f(")):     # doctest: +SKIP
        ...     pass
        """
        from moe_lab_widgets import terminal

        steps = ForegroundDriver(self._session).watch(iter(stream))
        return terminal.shown(self, steps) if terminal.in_terminal() else steps

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end of the run that ``start`` began, and return its text; raises what the run met."""
        driver = self._last_driver
        if driver is None:
            raise SettingError("nothing has been started here; type lab.start('...') first")
        return driver.result(timeout_s)

    def to_frame(self) -> Any:
        """The map as a table (pandas): a row an expert."""
        import pandas as pd

        now, spec = self.engine.telemetry.snapshot(), self.engine.spec
        L, E = now.resident.shape
        return pd.DataFrame({
            "layer": np.repeat(spec.layers, E), "expert": np.tile(np.arange(E), L), "resident": now.resident.ravel(),
            "used_now": now.used.ravel(), "just_loaded": now.loaded.ravel(), "swapped_in": now.swapped.ravel(),
            "uses": now.uses.ravel(), "hits": now.hits.ravel(), "last_use": now.last_use.ravel(),
        })

    def close(self) -> None:
        """Take the dashboard away and let its engine go; if it is the engine's last one, what it runs is stopped."""
        session = self.__dict__.get("_opened")       # absent where the constructor has raised
        if session is not None:
            self._listen_to_cells(False)
            session.leave(self)
            self._page.close()
            self._opened, self._last_driver, self._agreed = None, None, {}
        super().close()

    def __repr__(self) -> str:
        if self.__dict__.get("_opened") is None:
            return "MoE Lab: this dashboard is closed."
        numbers, session = self._session.history.numbers(), self._session
        return still.sentence(session.engine.spec.name, self.state, session.history.texts, numbers.hit_rate,
                              numbers.read_bytes_per_token, numbers.tokens_per_s, self.exact, self.disk)

    # --- runs ----------------------------------------------------------------------------------------------

    _last_driver: ThreadDriver | None = None

    def _start(self, prompt: Any, options: dict[str, Any], paused: bool) -> None:
        engine = self.engine
        prompt = self.prompt if prompt is None else prompt
        if isinstance(prompt, str):
            self.prompt = prompt
        self._options.update({name: value for name, value in options.items() if not self.has_trait(name)})
        session = self._session
        chosen = {**vars(session.wishes.sampling), "max_new_tokens": self.max_new_tokens, **self._options, **options}
        if chosen["seed"] is None:
            chosen["seed"] = engine.seed
        engine.stream(prompt, **chosen)               # refuses bad settings here, in the caller's thread
        drawn = {name: chosen.pop(name) for name in SAMPLING}

        words = prompt if isinstance(prompt, str) else f"[{len(prompt)} token ids]\n"

        def open_stream(ids: list[int]) -> Iterator[Any]:
            """The stream after ``ids``, with the sampling that holds by then."""
            tokens = prompt
            if ids:
                tokens = [*(engine.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt), *ids]
            left = {**chosen, "max_new_tokens": chosen["max_new_tokens"] - len(ids)}
            with acting("dashboard"):
                return iter(engine.stream(tokens, **left, **vars(session.wishes.sampling)))

        self._last_driver = ThreadDriver(session, open_stream, paused, words, drawn)
        self.max_new_tokens = chosen["max_new_tokens"]

    # --- wishes ----------------------------------------------------------------------------------------------

    def _turned(self, change: Any) -> None:
        """A setting was changed by the page or by code: note it, touch nothing."""
        if self._reflecting != threading.get_ident():
            self._wish(change["name"])

    def _wish(self, name: str) -> None:
        kind = name.removesuffix("_values")
        if kind in controls.KINDS:
            self._session.wish(kind, (getattr(self, kind), dict(getattr(self, f"{kind}_values"))))
        else:
            self._session.wish(name, getattr(self, name))

    def _name_parameters(self) -> None:
        """Give each parameter of each policy a trait of its name, tied to the dict that the page sees."""
        names = {p: kind for kind in controls.KINDS for p in self._session.choices.parameters(kind)}
        new = [p for p in names if p.isidentifier() and not hasattr(type(self), p)]
        if not new:
            return
        self.add_traits(**{p: Setting(help=f"Parameter of the {names[p]} policy.") for p in new})
        self._parameters = {**getattr(self, "_parameters", {}), **{p: names[p] for p in new}}
        self._show_parameters()
        self.observe(self._parameter_turned, new)

    def _parameter_turned(self, change: Any) -> None:
        name, value = change["name"], change["new"]
        if self._reflecting == threading.get_ident() or value is None:
            return
        kind = self._parameters[name]
        policy = self._session.choices.policies[kind].get(getattr(self, kind))
        if policy is not None and name in policy.parameters():
            setattr(self, f"{kind}_values", {**getattr(self, f"{kind}_values"), name: value})
        else:
            with self._speaking():
                self.set_trait(name, None)

    def _show_parameters(self) -> None:
        for name, kind in self._parameters.items():
            value = getattr(self, f"{kind}_values").get(name)
            self.set_trait(name, float(value) if isinstance(value, int) else value)

    # --- what the session tells (View) --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Traits set inside are the engine's words, not the user's wishes."""
        with self._page.lock:
            outer, self._reflecting = self._reflecting, threading.get_ident()
            try:
                yield
            finally:
                self._reflecting = outer

    def _listen_to_cells(self, on: bool) -> None:
        """Look at the engine after each cell: code may have changed or used it without a word to anyone."""
        if self._shell is not None:
            (self._shell.events.register if on else self._shell.events.unregister)("post_run_cell", self._after_cell)

    def _after_cell(self, *_: Any) -> None:
        self._session.after_cell()

    def reflect(self) -> None:
        """Bring the traits up to what the engine says."""
        session = self._session
        with self._speaking():
            if session.choices.look_around() or self.offered.get("simulated") != (self.engine.disk is not None):
                self.offered = session.choices.describe()
                self._name_parameters()
            for name, value in session.wishes.settings().items():
                if value != self._agreed.get(name):
                    self._agreed[name] = value
                    if not session.wishes.waits(name.removesuffix("_values")):
                        self.set_trait(name, value)
            self._show_parameters()
            self.exact = bool(self.engine.exact)
            self.disk = "real disk" if self.engine.disk is None else repr(self.engine.disk)
            self.finish, self.error, self.state = session.finish, session.error, session.state
            self.foreign = session.foreign
            self.foreground = session.driver is not None and session.driver.foreground
            self._page.outbox.patient = not self.foreground

    def refused(self, knob: str, message: str, place: str) -> None:
        """Show a refusal under its control and put the last good value back; an empty message clears it."""
        others = {at: words for at, words in self.refusals.items() if at.split(".")[0] != knob}
        if not message and others == self.refusals:
            return
        with self._speaking():
            self.refusals = {**others, **({place: message} if message else {})}
            if message and not self._session.wishes.waits(knob):
                for name, value in self._session.wishes.settings().items():
                    if name.removesuffix("_values") == knob:
                        self.set_trait(name, value)

    def due(self) -> bool:
        """Whether the page can take a picture now."""
        return self._page.outbox.due()

    def show(self, snapshot: Any, still: bool) -> None:
        """Send a picture with the news since the last one."""
        self._page.picture(snapshot, still)
        history = self._session.history
        numbers = history.numbers()
        self.token, self.tokens_per_s = history.tokens, numbers.tokens_per_s
        self.hit_rate, self.read_mib_per_token = numbers.hit_rate, numbers.read_bytes_per_token / 2**20

    def renew_still(self) -> None:
        """Renew the picture in the saved notebook."""
        if self._displayed:
            update_display(self._repr_mimebundle_(), raw=True, display_id=self._display_id)  # type: ignore[no-untyped-call]

    # --- messages ------------------------------------------------------------------------------------------------

    def _heard(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """A message of the page; everything in it is doubted."""
        if not isinstance(content, dict):
            return
        with contextlib.suppress(TypeError, ValueError, LookupError):      # no numbers where there should be some
            if "ack" in content:
                self._page.outbox.heard(int(content["ack"]))
            if "look" in content:
                self._page.look(content["look"])
        if "hello" in content:
            self._page.everything(still=self.state != "running")
            self.reflect()
        command = {"run": self._run_or_resume, "pause": self.pause, "step": self.one_token, "stop": self.stop,
                   "reset": self.reset}.get(str(content.get("do", "")))
        if command is not None:
            try:
                command()
            except MoELabError as error:
                self._session.error = str(error)
                self._session.tell()

    def _run_or_resume(self) -> None:
        if self._session.driver is None:
            self.start()
        else:
            self.resume()

    # --- display ---------------------------------------------------------------------------------------------------

    def _ipython_display_(self) -> None:
        """Display under an id of our own, so that the picture in the saved notebook can be renewed."""
        from moe_lab_widgets import terminal

        if self.__dict__.get("_opened") is None:
            print(repr(self))
            return
        if terminal.in_terminal():
            terminal.show(self)
            return
        self._displayed = True
        display(self._repr_mimebundle_(), raw=True, display_id=self._display_id)  # type: ignore[no-untyped-call]

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The live view for front ends that have a kernel; a picture and a sentence for all others."""
        bundle = super()._repr_mimebundle_(**kwargs)
        data = dict(bundle[0] if isinstance(bundle, tuple) else bundle or {})
        data["text/plain"] = repr(self)
        data["image/png"] = base64.b64encode(self.png()).decode()
        return data

    def png(self) -> bytes:
        """The present state as a PNG."""
        numbers = self._session.history.numbers()
        size, unit = format_bytes(numbers.read_bytes_per_token).split()
        facts = [("Speed", f"{numbers.tokens_per_s:.1f}", "tokens/s"), ("Reuse", f"{numbers.hit_rate:.0%}", ""),
                 ("Read per token", size, unit)]
        return still.png(self.engine.telemetry.snapshot(), repr(self), facts)
