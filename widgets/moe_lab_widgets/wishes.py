"""What dashboards ask of the engine: noted by any thread, made between two tokens, or at once.

Knows the engine's knobs by the names that dashboards use. Knows no view: what became of a wish is returned. What was
changed, by these wishes or by anybody, stands in the engine's own log (``following``).
"""

from __future__ import annotations

import dataclasses
import threading
from typing import Any, NamedTuple

import moe_lab as ml
from moe_lab.errors import MoELabError
from moe_lab_widgets.controls import KINDS, Choices, Refused, written

SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
"""Fields of ``ml.Sampling``; a dashboard writes 0 for no ``top_k`` and 1 for no ``top_p``."""
TEMPERATURE = 1.0
"""Of a dashboard's first run: a greedy small model soon repeats itself, and a text that does flatters every figure."""


class Answer(NamedTuple):
    """What became of a wish: refused because of ``place`` (the knob, or ``knob.parameter``), or granted."""

    knob: str
    message: str
    """Empty: it was granted."""
    place: str


class Wishes:
    """The changes that wait; a newer one of a knob takes the older one's place."""

    def __init__(self, engine: Any, choices: Choices) -> None:
        self._engine, self._choices = engine, choices
        self.sampling = engine.sampling or ml.Sampling(temperature=TEMPERATURE, seed=engine.seed)
        """How the next token is drawn, by the run in progress or by the next one."""
        self._waiting: dict[str, Any] = {}
        self._lock = threading.Lock()

    def note(self, knob: str, value: Any) -> None:
        """A change is asked for."""
        with self._lock:
            self._waiting[knob] = value

    def waits(self, knob: str) -> bool:
        """Whether a change of ``knob`` still waits."""
        return knob in self._waiting

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def make(self) -> list[Answer]:
        """Make the changes that wait."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        return [self._answer(knob, value) for knob, value in waiting.items()]

    def _answer(self, knob: str, value: Any) -> Answer:
        try:
            self._make(knob, value)
        except Refused as error:
            return Answer(knob, str(error), f"{knob}.{error.knob}")
        except MoELabError as error:
            return Answer(knob, str(error), knob)
        except Exception as error:
            return Answer(knob, f"{type(error).__name__}: {error}", knob)
        return Answer(knob, "", knob)

    def _make(self, knob: str, value: Any) -> None:
        engine = self._engine
        if knob == "slots":
            engine.cache.resize(value)
        elif knob in SAMPLING:
            none = {"top_k": 0, "top_p": 1}
            self.sampling = dataclasses.replace(self.in_force(), **{knob: None if value == none.get(knob) else value})
            engine.sampling = self.sampling
        elif knob in KINDS:
            setattr(engine, knob, self._choices.build(knob, *value))
        elif knob == "bandwidth":
            if engine.disk is not None:
                engine.disk.bandwidth = value * 1e6
        elif knob == "reset":
            engine.cache.reset()
        else:
            raise ValueError(f"no such knob: {knob}")

    def in_force(self) -> Any:
        """The ``Sampling`` that draws the next token: the engine's, where it generates."""
        if self._engine.busy and self._engine.sampling is not None:
            self.sampling = self._engine.sampling
        return self.sampling

    def settings(self) -> dict[str, Any]:
        """The engine's own truth, by the names of the dashboards' traits."""
        engine, sampling = self._engine, self.in_force()
        return {
            "temperature": float(sampling.temperature), "top_k": sampling.top_k or 0,
            "top_p": 1.0 if sampling.top_p is None else float(sampling.top_p),
            "repetition_penalty": float(sampling.repetition_penalty), "seed": int(sampling.seed),
            "slots": engine.cache.slots,
            "routing": engine.routing.name, "routing_values": written(engine.routing),
            "eviction": engine.eviction.name, "eviction_values": written(engine.eviction),
            "bandwidth": engine.disk.bandwidth / 1e6 if engine.disk is not None else 0.0,
        }
