"""Changes that Ctrl-C does not cut in two, and programs that have their own way with Ctrl-C."""

from __future__ import annotations

import signal

import pytest

from moe_lab.interrupts import uninterrupted


def test_a_handler_that_python_does_not_know_is_left_as_it_is(monkeypatch):
    """A program that runs Python inside (R, Julia) may have set one in C: Python could not put it back."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: pytest.fail("the handler was exchanged"))
    with uninterrupted():
        pass
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is before


class TooLate(Exception):
    """As timeouts raise it."""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the system has no alarms")
def test_an_alarm_acts_at_the_end_like_ctrl_c_and_every_handler_is_called_and_put_back():
    called = []

    def late(number, frame):
        called.append(number)
        raise TooLate

    def work():
        with uninterrupted():
            for number in numbers:
                signal.raise_signal(number)
            called.append("whole")

    numbers = signal.SIGALRM, signal.SIGUSR1
    before = [signal.signal(number, late) for number in numbers]
    try:
        with pytest.raises(TooLate):
            work()
        assert called[0] == "whole" and set(called[1:]) == set(numbers)
        assert [signal.getsignal(number) for number in numbers] == [late, late]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
