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
