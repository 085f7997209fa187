"""What has happened so far, in a form that views can be told from the beginning or from where they are.

Knows steps and clocks. Knows no engine, no widget and no message. One thread writes (the one that
generates), any thread reads. Writing is putting the step aside, a fraction of a microsecond; whoever reads next
works through what has been put aside, so the work is done as often as pictures are sent and not on the writer.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from moe_lab.engine.recorder import LATELY, distinct_share

T = TypeVar("T")

TOKENS_KEPT = 4000
"""Tokens of text that a new view is given."""
POINTS_KEPT = 1200
"""Points of the time lines: two minutes at ten a second."""
POINT_S = 0.1
"""A point of the time lines covers this long, or one token where a token takes longer."""
RECENT_S = 2.0
"""The large numbers are means over this long."""
ASIDE = 512
"""Steps put aside at most, where nobody reads."""
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


@dataclass(frozen=True)
class _Sum:
    """Counts of a stretch of tokens."""

    tokens: int
    elapsed_s: float
    hits: int
    misses: int
    swapped: int
    read_bytes: int
    seconds: tuple[float, float, float, float]
    """Reading, routing, experts, the rest."""

    @classmethod
    def of(cls, steps: list[Any], elapsed_s: float) -> _Sum:
        """The counts of ``steps``."""
        times = [step.times for step in steps]
        return cls(
            len(steps), elapsed_s, sum([s.hits for s in steps]), sum([s.misses for s in steps]),
            sum([s.swapped for s in steps]), sum([s.read_bytes for s in steps]),
            (sum([t.read_s for t in times]), sum([t.route_s for t in times]), sum([t.experts_s for t in times]),
             sum([t.rest_s for t in times])))


class History:
    """Text, time lines and marks of the present run; marks and time lines go on over runs.

    ``clock`` is replaced in tests.
    """

    def __init__(self, clock: Any = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._aside: deque[tuple[float, Any]] = deque()
        self._text: deque[list[Any]] = deque(maxlen=TOKENS_KEPT)
        self._ids: deque[int] = deque(maxlen=LATELY)
        self._points: deque[list[float]] = deque(maxlen=POINTS_KEPT)
        self._recent: deque[tuple[float, _Sum]] = deque()
        self._marks: deque[dict[str, Any]] = deque(maxlen=MARKS_KEPT)
        self._open: list[Any] = []          # steps of the point that is not closed yet
        self._open_s = 0.0
        self._since = self._clock()
        self._tokens = self._begun = self._pointed = 0
        self._busy_s = 0.0
        self.run = 0
        """Which run this is; views drop the text of an older one."""
        self.marked = 0
        """Counts changes of the marks."""

    # --- the writer's side --------------------------------------------------------------------------

    def begin(self) -> None:
        """A new run: the text starts anew."""
        with self._digested():
            self._text.clear()
            self._ids.clear()
            self._recent.clear()
            self._open, self._open_s = [], 0.0
            self._begun = self._tokens
            self.run += 1
        self.resume()

    def resume(self) -> None:
        """The clock starts again: what lies behind (a pause) is nobody's time."""
        self._aside.append((self._clock(), None))

    def took(self, step: Any) -> float:
        """Note one step; returns its moment. The first of a run holds the prompt and stays out of the rates."""
        now: float = self._clock()
        self._aside.append((now, step))
        if len(self._aside) > ASIDE:
            self._digest()
        return now

    def _digest(self) -> None:
        """Work through what was put aside."""
        with self._lock:
            while self._aside:
                now, step = self._aside.popleft()
                elapsed, self._since = now - self._since, now
                if step is None:
                    continue
                uses = step.hits + step.misses or 1
                self._ids += step.ids
                self._text.append([step.text, round(step.misses / uses, 3), round(step.swapped / uses, 3)])
                self._tokens += 1
                self._busy_s += elapsed
                if step.index:
                    self._open.append(step)
                    self._open_s += elapsed
                    if self._open_s >= POINT_S:
                        self._close_point(now)

    @contextlib.contextmanager
    def _digested(self) -> Iterator[None]:
        """Under the lock, with nothing left aside."""
        with self._lock:
            self._digest()
            yield

    def flush(self) -> None:
        """End the point that is open, so that a pause shows the very last token."""
        with self._digested():
            if self._open:
                self._close_point(self._clock())

    def _close_point(self, now: float) -> None:
        done = _Sum.of(self._open, self._open_s)
        self._open, self._open_s = [], 0.0
        self._recent.append((now, done))
        while len(self._recent) > 1 and sum(s.elapsed_s for _, s in self._recent) > RECENT_S:
            self._recent.popleft()
        uses, n = max(1, done.hits + done.misses), done.tokens
        self._points.append([
            self._tokens, round(now, 2), round(done.hits / uses, 4), round(n / max(done.elapsed_s, 1e-9), 2),
            round(done.read_bytes / n), *(round(1e3 * s / n, 3) for s in done.seconds),
        ])
        self._pointed += 1

    def moves(self, knob: str) -> bool:
        """Whether a mark of ``knob`` would take the place of the last one: it is still the same drag."""
        with self._digested():
            last = self._marks[-1] if self._marks else None
            return last is not None and last["knob"] == knob and self._tokens - last["token"] <= SAME_MARK_TOKENS

    def mark(self, knob: str, words: str, by: str = "") -> None:
        """Note that ``knob`` was changed; shown as ``words`` at the present token. ``by``: who did, if not the user of
        a dashboard."""
        moves = self.moves(knob)
        with self._lock:
            if not self._tokens:
                return                       # the lines have not begun
            if moves:
                self._marks.pop()
            self._marks.append({"token": self._tokens, "knob": knob, "words": words, "by": by})
            self.marked += 1

    # --- the readers' side --------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """Tokens of all runs since the board was made: the time lines' axis."""
        with self._digested():
            return self._tokens

    @property
    def texts(self) -> int:
        """Pieces of text of this run so far."""
        with self._digested():
            return self._tokens - self._begun

    @property
    def points(self) -> int:
        """Points so far."""
        with self._digested():
            return self._pointed

    @property
    def distinct(self) -> float:
        """Share of the 4-grams of this run's last 200 tokens that are distinct; NaN of fewer than four tokens."""
        with self._digested():
            return distinct_share(self._ids)

    @property
    def busy_s(self) -> float:
        """Seconds spent on the tokens of all runs."""
        with self._digested():
            return self._busy_s

    def text_since(self, index: int) -> tuple[int, list[list[Any]]]:
        """(index of the first, pieces): [text, share loaded, share swapped] from ``index`` on, as far as kept."""
        with self._digested():
            texts = self._tokens - self._begun
            first = max(index, texts - len(self._text))
            return first, _last(self._text, texts - first)

    def points_since(self, index: int) -> tuple[int, list[list[float]]]:
        """(index of the first, points): token, clock s, hit rate, tokens/s, bytes a token, then ms a token
        of reading, routing, experts and the rest."""
        with self._digested():
            first = max(index, self._pointed - len(self._points))
            return first, _last(self._points, self._pointed - first)

    def marks(self) -> list[dict[str, Any]]:
        """Where something was changed: token, knob, words, and by whom where that was no dashboard."""
        with self._lock:
            return list(self._marks)

    def words(self) -> str:
        """The text of this run, as far as kept."""
        with self._digested():
            return "".join(piece[0] for piece in self._text)

    def numbers(self) -> Numbers:
        """Means over the last two seconds."""
        with self._digested():
            parts = [s for _, s in self._recent]
            if not parts and self._open:
                parts = [_Sum.of(self._open, self._open_s)]
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


def _last(kept: deque[T], count: int) -> list[T]:
    """The newest ``count`` of ``kept``, the oldest of them first."""
    return list(itertools.islice(reversed(kept), count))[::-1]
