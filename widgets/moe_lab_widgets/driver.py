"""Who turns the crank: a thread behind the notebook, or the loop in a cell. Two drivers over one session.

Knows steps, pausing and stopping. Knows no widget. The thread is the default: it is the one way that lets a
slider through on every kernel. It is a daemon, so it never outlives the kernel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from moe_lab.errors import BusyError
from moe_lab_widgets.session import Session

STILL_AFTER_S = 1.0
"""A pause that lasts this long renews the picture in the saved notebook."""


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    text: str
    ids: tuple[int, ...]
    finish: str
    """``end``, ``length``, ``stop`` or ``context``; ``stopped`` where the user ended it."""


class ThreadDriver:
    """Generates in a background thread.

    ``open_stream(ids)`` opens the stream after the ids generated so far: an engine's stream is over once it has
    raised, but a policy that broke can be exchanged and the run resumed. ``prompt`` is shown, ``sampling``
    holds unless changed.
    """

    foreground = False

    def __init__(self, session: Session, open_stream: Callable[[list[int]], Iterator[Any]], paused: bool,
                 prompt: str, sampling: dict[str, Any]) -> None:
        self._session = session
        self._stream: Iterator[Any] | None = None
        self._open = open_stream
        self._change = threading.Condition()
        self._paused, self._steps, self._stopping = paused, int(paused), False
        self._news = False
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._standing, self._over = threading.Event(), threading.Event()
        session.began(self, prompt, sampling)
        self._thread = threading.Thread(target=self._run, name="moe-lab", daemon=True)
        self._thread.start()

    # --- any thread -------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There are wishes."""
        with self._change:
            self._news = True
            self._change.notify_all()

    def pause(self) -> None:
        """Stand still after the present token."""
        with self._change:
            self._paused = True
            self._change.notify_all()

    def resume(self) -> None:
        """Go on."""
        with self._change:
            self._paused, self._steps = False, 0
            self._standing.clear()
            self._change.notify_all()

    def one_token(self) -> None:
        """Generate one token and stand still again."""
        with self._change:
            self._paused = True
            self._steps += 1
            self._standing.clear()
            self._change.notify_all()

    def stop(self, timeout_s: float | None = 10.0) -> bool:
        """End after the present token; returns whether the thread has ended."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end (or for an error) and return the text; raises what the run met."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._over.is_set() and not (self._session.exception and self._standing.is_set()):
            if end is not None and time.monotonic() > end:
                raise TimeoutError("the run has not ended yet; it goes on (lab.stop() ends it)")
            self._over.wait(0.05)
        if self._session.exception is not None:
            raise self._session.exception
        return Result("".join(self._pieces), tuple(self._ids), self._session.finish or "stopped")

    # --- the generating thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        session = self._session
        try:
            while self._may_go_on():
                opened = self._stream is None
                try:
                    if self._stream is None:
                        self._stream = self._open(self._ids)
                    step = next(self._stream)
                except StopIteration:
                    break
                except BusyError as error:
                    self._stream = None
                    if opened:
                        session.failed(error)
                        self.pause()
                    continue                # another run has begun and ended in a pause: go on in a new stream
                except Exception as error:
                    self._stream = None
                    session.failed(error)
                    self.pause()
                    continue
                self._ids += step.ids
                self._pieces.append(step.text)
                session.took(step)
        finally:
            if self._stream is not None:
                self._stream.close()  # type: ignore[attr-defined]  # streams are generators
            session.ended(stopped=self._stopping or not session.finish)
            self._over.set()

    def _may_go_on(self) -> bool:
        """Make the wishes true, and stand here while paused. False: the run is to end."""
        session = self._session
        session.settle()
        if self._stopping or (not self._paused):
            return not self._stopping
        if self._take_a_step():
            return True
        if self._ids and session.exception is None:
            session.explained()
        session.pauses()
        self._standing.set()
        renewed = False
        while True:
            with self._change:
                if not (self._news or self._stopping or self._steps) and self._paused:
                    told = self._change.wait(None if renewed else STILL_AFTER_S)
                else:
                    told = True
                self._news = False
            if not told:
                session.renew_still()
                renewed = True
            session.settle()
            if self._ending():
                return False
            if not self._paused or self._take_a_step():
                self._standing.clear()
                session.resumes()
                return True

    def _ending(self) -> bool:
        """Whether another thread has asked for the end meanwhile."""
        return self._stopping

    def _take_a_step(self) -> bool:
        with self._change:
            if self._steps:
                self._steps -= 1
                return True
        return False


class ForegroundDriver:
    """Shows the steps of a loop that the user wrote. The kernel is busy with that loop, so most front ends
    deliver what the user turns only when the cell ends; a change that gets through acts at the next token.
    """

    foreground = True

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stopping = False

    def wake(self) -> None:
        """Wishes are looked for at every token."""

    def pause(self) -> None:
        """A loop in a cell cannot stand still: nothing could start it again."""

    resume = one_token = pause

    def stop(self, timeout_s: float | None = None) -> bool:
        """End the loop after the present token."""
        self._stopping = True
        return False

    def watch(self, stream: Iterator[Any]) -> Iterator[Any]:
        """Yield the steps of ``stream`` and show each."""
        session = self._session
        session.began(self)
        try:
            for step in stream:
                session.took(step)
                yield step
                session.settle()
                if self._stopping:
                    break
        except Exception as error:
            session.failed(error)
            raise
        finally:
            session.ended(stopped=not session.finish)
