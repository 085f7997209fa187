"""Compiling ahead: what a first run of an installation finds ready, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

import moe_lab as ml
from moe_lab.engine.warm import Ahead

FIRST = """
import sys, threading
from numba.core import event
import moe_lab as ml

class Needed(event.Listener):
    here = anywhere = 0

    def on_start(self, event):
        self.anywhere += 1
        self.here += threading.current_thread() is threading.main_thread()

    def on_end(self, event):
        pass

needed = Needed()
event.register("numba:compiler_lock", needed)       # held to compile, and to read from disk what was compiled before
for weights in ("bf16", "q8"):
    engine = ml.load("pocket", weights=weights)
    engine._ahead.join()
    loading = needed.here
    engine.generate("def add(a, b):", max_new_tokens=3, stop_at_end=False)
    print(weights, needed.anywhere > 0, needed.here - loading)
    needed.here = needed.anywhere = 0
"""


def python(*words: str) -> str:
    """What a process of its own prints."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout


def test_after_the_background_is_through_a_first_text_needs_nothing_of_numba() -> None:
    assert python("-c", FIRST).splitlines() == ["bf16 True 0", "q8 True 0"]


def test_steps_are_done_in_order_and_one_that_fails_holds_nobody_up() -> None:
    ahead, done, gate = Ahead(), [], threading.Event()
    ahead.add([gate.wait, lambda: done.append(1), lambda: 1 / 0])
    ahead.add([lambda: done.append(2)])
    assert done == []
    gate.set()
    ahead.join()
    ahead.add([lambda: done.append(3)])
    ahead.join()
    assert done == [1, 2, 3]


@pytest.mark.parametrize("awaited", [True, False])
def test_whoever_waits_long_for_a_token_is_told_why_once(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, awaited: bool) -> None:
    monkeypatch.setattr("moe_lab.engine.warm.PATIENCE", -1.0)
    ahead = Ahead()
    ahead.add([lambda: None] * 3, awaited=lambda: awaited)
    ahead.join()
    assert capsys.readouterr().err.count("compiling kernels, once per installation") == awaited


def test_a_program_that_ends_does_not_wait_for_the_steps_that_are_left() -> None:
    script = ("import threading; from moe_lab.engine.warm import Ahead; begun = threading.Event()\n"
              "def step():\n    begun.set()\n    threading.main_thread().join()\n    print('one')\n"
              "Ahead().add([step, lambda: print('two')]); begun.wait()")
    assert python("-c", script) == "one\n"


def test_an_engine_compiles_for_its_own_model_ahead(checkpoint) -> None:
    from moe_lab.kernels.sealed import _over

    engine = ml.load(str(checkpoint("qwen2-moe")), weights="q8")
    engine._ahead.join()
    before = _over.cache_info().currsize            # kernels over sealed arguments, compiled or found on disk
    engine.generate([5, 17, 3], max_new_tokens=3, stop_at_end=False)
    assert before == _over.cache_info().currsize > 0
