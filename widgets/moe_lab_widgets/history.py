"""What has happened so far, in a form that views can be told from the beginning or from where they are.

Knows steps and clocks. Knows no engine, no widget and no message. One thread writes (the one that
generates); any thread reads, under a lock that is held for a copy only.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

TOKENS_KEPT = 4000
"""Tokens of text that a new view is given."""
POINTS_KEPT = 1200
"""Points of the time lines: two minutes at ten a second."""
POINT_S = 0.1
"""A point of the time lines covers this long, or one token where a token takes longer."""
RECENT_S = 2.0
"""The large numbers are means over this long."""
MARKS_KEPT = 60
SAME_MARK_TOKENS = 24
"""A knob that moves again within so many tokens moves its mark: a drag is one mark."""


@dataclass(frozen=True)
class Numbers:
    """The large numbers, over the last two seconds of decoding (or over what there is)."""

    tokens_per_s: float = 0.0
    hit_rate: float = 0.0
    read_bytes_per_token: float = 0.0
    swapped_share: float = 0.0


@dataclass
class _Sum:
    """Counts of a stretch of tokens."""

    tokens: int = 0
    elapsed_s: float = 0.0
    hits: int = 0
    misses: int = 0
    swapped: int = 0
    read_bytes: int = 0
    read_s: float = 0.0
    route_s: float = 0.0
    experts_s: float = 0.0
    rest_s: float = 0.0

    def add(self, step: Any, elapsed_s: float) -> None:
        self.tokens += 1
        self.elapsed_s += elapsed_s
        self.hits += step.hits
        self.misses += step.misses
        self.swapped += step.swapped
        self.read_bytes += step.read_bytes
        self.read_s += step.times.read_s
        self.route_s += step.times.route_s
        self.experts_s += step.times.experts_s
        self.rest_s += step.times.rest_s


class History:
    """Text, time lines and marks of the present run; marks and time lines go on over runs.

    ``clock`` is replaced in tests.
    """

    def __init__(self, clock: Any = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._text: deque[list[Any]] = deque(maxlen=TOKENS_KEPT)
        self._points: deque[list[float]] = deque(maxlen=POINTS_KEPT)
        self._recent: deque[tuple[float, _Sum]] = deque()
        self._marks: deque[dict[str, Any]] = deque(maxlen=MARKS_KEPT)
        self._sum = _Sum()
        self._since = self._clock()
        self.tokens = 0
        """Tokens of all runs since the board was made: the time lines' axis."""
        self.texts = 0
        """Pieces of text of this run so far."""
        self.points = 0
        """Points so far."""
        self.run = 0
        """Which run this is; views drop the text of an older one."""
        self.marked = 0
        """Counts changes of the marks."""

    # --- the writer's side --------------------------------------------------------------------------

    def begin(self) -> None:
        """A new run: the text starts anew."""
        with self._lock:
            self._text.clear()
            self._recent.clear()
            self._sum = _Sum()
            self.texts = 0
            self.run += 1
        self.resume()

    def resume(self) -> None:
        """The clock starts again: what lies behind (a pause) is nobody's time."""
        self._since = self._clock()

    def took(self, step: Any) -> None:
        """Note one step. The first of a run holds the prompt and stays out of the rates."""
        now = self._clock()
        elapsed, self._since = now - self._since, now
        uses = max(1, step.hits + step.misses)
        with self._lock:
            self._text.append([step.text, round(step.misses / uses, 3), round(step.swapped / uses, 3)])
            self.texts += 1
            self.tokens += 1
            if step.index:
                self._sum.add(step, elapsed)
                if self._sum.elapsed_s >= POINT_S:
                    self._close_point(now)

    def flush(self) -> None:
        """End the point that is open, so that a pause shows the very last token."""
        with self._lock:
            if self._sum.tokens:
                self._close_point(self._clock())

    def _close_point(self, now: float) -> None:
        done, self._sum = self._sum, _Sum()
        self._recent.append((now, done))
        while len(self._recent) > 1 and sum(s.elapsed_s for _, s in self._recent) > RECENT_S:
            self._recent.popleft()
        uses, n = max(1, done.hits + done.misses), done.tokens
        self._points.append([
            self.tokens, round(now, 2), round(done.hits / uses, 4), round(n / max(done.elapsed_s, 1e-9), 2),
            round(done.read_bytes / n), *(round(1e3 * s / n, 3) for s in
                                          (done.read_s, done.route_s, done.experts_s, done.rest_s)),
        ])
        self.points += 1

    def moves(self, knob: str) -> bool:
        """Whether a mark of ``knob`` would take the place of the last one: it is still the same drag."""
        with self._lock:
            last = self._marks[-1] if self._marks else None
            return last is not None and last["knob"] == knob and self.tokens - last["token"] <= SAME_MARK_TOKENS

    def mark(self, knob: str, words: str) -> None:
        """Note that the user changed ``knob``; shown as ``words`` at the present token."""
        moves = self.moves(knob)
        with self._lock:
            if moves:
                self._marks.pop()
            self._marks.append({"token": self.tokens, "knob": knob, "words": words})
            self.marked += 1

    # --- the readers' side --------------------------------------------------------------------------

    def text_since(self, index: int) -> tuple[int, list[list[Any]]]:
        """(index of the first, pieces): [text, share loaded, share swapped] from ``index`` on, as far as kept."""
        with self._lock:
            first = max(index, self.texts - len(self._text))
            count = self.texts - first
            return first, list(self._text)[-count:] if count else []

    def points_since(self, index: int) -> tuple[int, list[list[float]]]:
        """(index of the first, points): token, clock s, hit rate, tokens/s, bytes a token, then ms a token
        of reading, routing, experts and the rest."""
        with self._lock:
            first = max(index, self.points - len(self._points))
            count = self.points - first
            return first, list(self._points)[-count:] if count else []

    def marks(self) -> list[dict[str, Any]]:
        """Where the user changed something: token, knob, words."""
        with self._lock:
            return list(self._marks)

    def words(self) -> str:
        """The text of this run, as far as kept."""
        with self._lock:
            return "".join(piece[0] for piece in self._text)

    def numbers(self) -> Numbers:
        """Means over the last two seconds."""
        with self._lock:
            parts = [s for _, s in self._recent]
            if not parts and self._sum.tokens:
                parts = [self._sum]
            tokens = sum(s.tokens for s in parts)
            if not tokens:
                return Numbers()
            uses = max(1, sum(s.hits + s.misses for s in parts))
            return Numbers(
                tokens / max(1e-9, sum(s.elapsed_s for s in parts)),
                sum(s.hits for s in parts) / uses,
                sum(s.read_bytes for s in parts) / tokens,
                sum(s.swapped for s in parts) / uses,
            )
