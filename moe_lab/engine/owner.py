"""Who may use the engine now, and what others wish to change in the meantime.

A claim belongs to a run: to a stream, which may go from thread to thread between its tokens, or to a block of code in
one thread. Whoever else wants the engine meanwhile is refused, unless the claim is a stream that was left behind. A
change asked for from outside waits and is made between two tokens; where nobody generates it is made at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from moe_lab.errors import BusyError
from moe_lab.forks import renew_in_child
from moe_lab.interrupts import uninterrupted

LEFT_S = 3.0
"""Seconds without a token after which a stream counts as left behind, if somebody else wants the engine."""


class Claim:
    """One run's, or one block's, right to the engine."""

    __slots__ = ("asked", "began", "outer", "over", "rests", "stopped", "stream", "thread")

    def __init__(self, outer: Claim | None, stream: bool) -> None:
        self.outer, self.stream = outer, stream
        self.thread = threading.current_thread()
        """Who is inside, or was last."""
        self.began = self.asked = time.monotonic()
        """When it began, and when a stream was last asked for a token or gave one."""
        self.rests = False
        """Whether a stream waits for somebody to ask for its next token."""
        self.over = False
        self.stopped = False
        """Whether somebody has asked for its end."""


@dataclass(frozen=True)
class _Wish:
    """A change that waits, and who is told if it cannot be made when its turn comes."""

    make: Callable[[], object]
    refused: Callable[[Exception], object]


class Owner:
    """The claim in force, and the changes that wait."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._latest: Claim | None = None
        self._wishes: dict[str, _Wish] = {}
        self.in_pass = False
        self.aside = False
        """Whether the owner's block works on states of its own, so that changes of the live ones wait for its end."""
        renew_in_child(self)

    def after_fork(self) -> None:
        """In a child: no other thread is left that could hold the lock or be inside a pass."""
        self._lock = threading.RLock()
        if (claim := self._claim) is not None and claim.thread is not threading.current_thread():
            self.in_pass = False

    # --- claims -----------------------------------------------------------------------------------------

    @property
    def _claim(self) -> Claim | None:
        """The claim in force. One that is over counts no more; this asks for no lock, so that a stream may end while
        garbage is collected, whatever is locked then."""
        claim = self._latest
        while claim is not None and claim.over:
            claim = claim.outer
        return claim

    @property
    def busy(self) -> bool:
        """Whether somebody has the engine, and is not gone."""
        claim = self._claim
        return claim is not None and not self._left(claim)

    def _left(self, claim: Claim) -> bool:
        """Whether nobody will go on with it, as far as can be told."""
        if not claim.thread.is_alive():
            return True
        return claim.stream and not self.in_pass and time.monotonic() - claim.asked > LEFT_S

    def take(self, *, run: bool = False) -> Claim | None:
        """Claim the engine for a block of code; None where this thread has it already.

        ``run``: a new run begins, so a stream of this thread is over.
        Raises ``BusyError`` where another thread has it, or for a run where a pass is under way in this one.
        """
        with self._lock:
            here = self._make_way(run)
            return self._made(here, stream=False) if here is None or here.rests else None

    def take_stream(self) -> Claim:
        """Claim the engine for a stream; one of this thread before it is over. Raises as ``take``."""
        with self._lock:
            return self._made(self._make_way(run=True), stream=True)

    def _make_way(self, run: bool) -> Claim | None:
        """This thread's claim in force, once what stands in the way is over; or ``BusyError``."""
        while (claim := self._claim) is not None and claim.thread is not threading.current_thread():
            if not self._left(claim):
                raise BusyError(_refusal(claim))
            self._end(claim)
        if claim is None or not run:
            return claim
        if self.in_pass:
            raise BusyError("a hook inside the model's own pass cannot begin another run; let the pass end")
        if claim.stream:
            self._end(claim)
        return self._claim

    def _made(self, outer: Claim | None, stream: bool) -> Claim:
        self.in_pass = False                # where an interrupt has left it on, the pass is gone all the same
        self._latest = claim = Claim(outer, stream)
        return claim

    def _end(self, claim: Claim) -> None:
        """A stream that was left is over; so is what stands inside it."""
        inner = self._latest
        while inner is not None and inner is not claim:
            inner.over = True
            inner = inner.outer
        claim.over = True

    def drop(self, claim: Claim | None) -> None:
        """Give it back; changes that still wait are made."""
        if claim is not None:
            claim.over = True
            self._latest = self._claim
            if self._wishes and self._latest is None:
                with self._lock:
                    self._grant()

    @contextmanager
    def held(self, *, run: bool = False) -> Iterator[None]:
        """Have the engine for the length of a block; ``run``: it is a run of its own."""
        claim = self.take(run=run)
        try:
            yield
        finally:
            if claim is not None:
                with uninterrupted():
                    self.drop(claim)

    # --- streams ----------------------------------------------------------------------------------------

    def rest(self, claim: Claim) -> None:
        """The stream hands out a token; whichever thread asks for the next one has it then."""
        claim.asked, claim.rests = time.monotonic(), True

    def go_on(self, claim: Claim) -> bool:
        """The stream is asked for its next token, by this thread; False if it is to end.

        Raises ``BusyError`` if another run has begun, or if another thread is inside just now.
        """
        if claim.stopped:
            return False
        with self._lock:
            here = self._claim
            if claim.over:
                raise BusyError("this stream was left half-way, and another run began or the engine was closed; start "
                                "it anew")
            if here is not claim and here is not None and here.thread is not threading.current_thread():
                raise BusyError(_refusal(here))
            claim.thread, claim.asked, claim.rests = threading.current_thread(), time.monotonic(), False
            self.in_pass = False
        return True

    def stop(self) -> bool:
        """End the stream in progress, whoever began it: after its present token, or now where it rests. Returns
        whether there was one."""
        with self._lock:
            claim = self._claim
            while claim is not None and not (claim.stream and not claim.over):
                claim = claim.outer
            if claim is None:
                return False
            claim.stopped = True
            if claim.rests:
                self._end(claim)
                self.drop(claim)
            return True

    # --- wishes -----------------------------------------------------------------------------------------

    def wish(self, knob: str, make: Callable[[], object],
             refused: Callable[[Exception], object] = lambda error: None) -> None:
        """Make a change now if nobody else generates, else between two tokens; a newer wish of that knob wins.

        What ``make`` raises is raised here where the change is made now; else ``refused`` is told.
        """
        with self._lock:
            self._wishes[knob] = _Wish(make, refused)
            claim = self._claim
            here = claim is not None and claim.thread is threading.current_thread()
            mine = here and not (self.in_pass or self.aside)
            if claim is None or mine or self._left(claim):
                self._grant(knob)

    def between_tokens(self) -> None:
        """Make the changes that wait; called by the owner before a pass."""
        if self._wishes:
            with self._lock:
                self._grant()

    def _grant(self, own: str = "") -> None:
        """Make all changes that wait; raise what the one of the caller's ``own`` met."""
        met: Exception | None = None
        while self._wishes:
            knob = next(iter(self._wishes))
            wish = self._wishes.pop(knob)
            try:
                wish.make()
            except Exception as error:
                if knob == own:
                    met = error
                else:
                    wish.refused(error)
        try:
            if met is not None:
                raise met
        finally:
            del met                 # its traceback holds this frame, and that would hold it: nobody would be freed


def _refusal(claim: Claim) -> str:
    """Why the engine cannot be had, and what helps."""
    since, asked = (time.monotonic() - then for then in (claim.began, claim.asked))
    if not claim.stream:
        return ("the engine is in use in another thread (a score, a sweep or engine.hf, "
                f"for {since:.0f} s); wait for it")
    rests = f", its last token {asked:.0f} s ago" if claim.rests else ""
    return (f"the engine is generating in another thread (a stream that began {since:.0f} s ago{rests}); wait for it, "
            "or end it: engine.stop(), or lab.stop() and the Stop button where a dashboard shows it")
