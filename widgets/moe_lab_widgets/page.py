"""What the pages of one dashboard have been told, and what they are to be told next.

Knows messages and the session they are made from. Knows no traits. Everything a page draws beside its controls
goes through here: pictures with the news since the last one, or all there is for a page that has just come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from moe_lab_widgets import frames
from moe_lab_widgets.session import Session

_CURVE_EVERY = 5
"""The curve goes with every fifth picture."""


class Page:
    """The messages of one dashboard. ``send(content, buffers)`` takes them away; ``lock`` keeps their order."""

    def __init__(self, session: Session, send: Callable[[Any, Any], None]) -> None:
        self.outbox = frames.Outbox()
        self.lock = threading.RLock()
        self._session, self._send = session, send
        self._before: np.ndarray | None = None
        self._sent = -1
        self._forget()

    def close(self) -> None:
        """Send nothing more, and hold nothing."""
        with self.lock:
            self._send = lambda content, buffers: None
            del self._session

    def _forget(self) -> None:
        self._run, self._text, self._points, self._marked = -1, 0, 0, -1

    def picture(self, snapshot: Any, still: bool) -> None:
        """Send a picture with the news since the last one; ``still``: it is the last for a while."""
        with self.lock:
            if not still and snapshot.token <= self._sent:
                return              # a newer one went another way meanwhile: a pause's
            self._sent = snapshot.token
            sequence = self.outbox.next()
            content = {"k": "frame", **self._news(sequence % _CURVE_EVERY == 1 or still)}
            self._send(content, [frames.pack(sequence, snapshot, self._before, still)])
            self._before = snapshot.resident

    def everything(self, still: bool) -> None:
        """A page has come or come back: send all there is, from the beginning."""
        with self.lock:
            self.outbox.heard(self.outbox.sequence)
            self._forget()
            snapshot = self._session.engine.telemetry.snapshot()
            self._send({"k": "full", **self._news(with_curve=True)},
                       [frames.pack(self.outbox.next(), snapshot, None, still)])
            self._before = snapshot.resident

    def look(self, place: Any) -> None:
        """The user looks at the cell ``[layer, expert]``: describe it. The page asks again while the user stays."""
        self._send({"k": "cell", "cell": self._session.cell(int(place[0]), int(place[1]))}, None)

    def _news(self, with_curve: bool) -> dict[str, Any]:
        """Everything since the last message: numbers, text, points; marks and sentences where they changed."""
        session, history = self._session, self._session.history
        new_run = self._run != history.run
        if new_run:
            self._run, self._text = history.run, 0
        numbers = history.numbers()
        first, pieces = history.text_since(self._text)
        first_point, points = history.points_since(self._points)
        self._text, self._points = first + len(pieces), first_point + len(points)
        news: dict[str, Any] = {
            "run": history.run, "token": history.tokens, "text": [first, pieces], "points": [first_point, points],
            "numbers": [numbers.tokens_per_s, numbers.hit_rate, numbers.read_bytes_per_token, numbers.swapped_share],
            "cost": round(session.cost, 4),
        }
        if new_run:
            news["prompt"] = session.prompt
        if self._marked != history.marked:
            self._marked = history.marked
            news["marks"] = history.marks()
        if with_curve:
            hit = np.rint(session.curve.hit_rate() * 1e4).astype(int)
            news["curve"] = {"tokens": session.curve.tokens, "hit": hit.tolist()}
            news["said"] = session.sentences
            distinct = history.distinct
            news["distinct"] = round(distinct, 3) if distinct == distinct else 1
        return news
