"""Compiling ahead: what a first run of an installation finds ready, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numba
import pytest
from numba.core import event

import moe_lab as ml
from moe_lab.engine.warm import Ahead
from moe_lab.kernels.jit import jit
from moe_lab.kernels.kept import KernelCache

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
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, timeout=120).stdout


def test_after_the_background_is_through_a_first_text_needs_nothing_of_numba() -> None:
    assert python("-c", FIRST).splitlines() == ["bf16 True 0", "q8 True 0"]


def test_steps_are_done_in_order_and_one_that_fails_ends_its_chain_alone() -> None:
    ahead, done, gate = Ahead(), [], threading.Event()
    ahead.add([gate.wait, lambda: done.append(1), lambda: 1 / 0, lambda: done.append("needs what failed")])
    ahead.add([lambda: done.append(2)])
    assert done == []
    gate.set()
    ahead.join()
    ahead.add([lambda: done.append(3)])
    ahead.join()
    assert done == [1, 2, 3]


# --- what whoever waits is told ----------------------------------------------------------------------

LINE = "compiling kernels, once per installation"


def plain(x):
    return x + 1


@contextmanager
def compiling(keeps: bool = True) -> Iterator[None]:
    """numba compiles a kernel in this block, or what is not kept: a user's policy."""
    kernel = jit(plain) if keeps else numba.njit(plain)
    assert isinstance(kernel._cache, KernelCache) is keeps
    with event.trigger_event("numba:compile", data={"dispatcher": kernel}):
        yield


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody has patience, and kernels are kept for this test alone."""
    monkeypatch.setattr("moe_lab.engine.warm.PATIENCE", -1.0)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))


def compiled() -> None:
    with compiling():
        pass


@pytest.mark.usefixtures("hurry")
def test_whoever_waits_while_kernels_are_compiled_is_told_why_once(capsys: pytest.CaptureFixture[str]) -> None:
    ahead = Ahead()
    with ahead.awaited():
        ahead.add([compiled] * 3)
        ahead.join()
    assert capsys.readouterr().err.count(LINE) == 1


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("keeps", [True, False])
def test_nothing_is_said_where_all_comes_from_disk_or_only_a_policy_is_compiled(
        keeps: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def step() -> None:
        kernel = jit(plain) if keeps else numba.njit(plain)
        kernel(1)

    if keeps:
        jit(plain)(1)           # by an earlier process
    ahead = Ahead()
    with ahead.awaited():
        ahead.add([step] * 3)
        ahead.join()
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("hurry")
def test_nothing_is_said_where_nobody_waits(capsys: pytest.CaptureFixture[str]) -> None:
    ahead = Ahead()
    ahead.add([compiled] * 3)
    ahead.join()
    assert capsys.readouterr().err == ""


def test_it_is_said_before_the_first_token_and_not_within_the_text(capsys: pytest.CaptureFixture[str],
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_lab.engine.warm.PATIENCE", 3600.0)
    ahead, begun, through = Ahead(), threading.Event(), threading.Event()

    def slow() -> None:
        with compiling():
            begun.set()
            through.wait()

    ahead.add([slow, compiled])
    begun.wait()
    text = ahead.announced(iter("ab"))
    assert next(text) == "a"
    assert capsys.readouterr().err.count(LINE) == 1
    monkeypatch.setattr("moe_lab.engine.warm.PATIENCE", -1.0)
    through.set()
    ahead.join()
    assert list(text) == ["b"]
    assert list(ahead.announced(iter("cd"))) == ["c", "d"]
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("hurry")
def test_what_is_compiled_after_the_first_token_is_not_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    ahead = Ahead()
    text = ahead.announced(iter("ab"))
    next(text)
    ahead.add([compiled] * 3)
    ahead.join()
    assert list(text) == ["b"]
    assert capsys.readouterr().err == ""


# --- forks -------------------------------------------------------------------------------------------

FORK = """
import multiprocessing, os, sys, threading, time
from numba.core.compiler_lock import global_compiler_lock
from moe_lab.engine.warm import Ahead
from moe_lab.kernels import plugin

begun, done, ahead = threading.Event(), [], Ahead()

def step():
    with plugin._lock, global_compiler_lock:
        begun.set()
        time.sleep(0.3)
    done.append("this step")

def in_child():
    assert "this step" in done          # the fork waited for it
    del done[1:]                        # the parent's thread may have been fast enough for the next
    ahead.join()
    ahead.add([lambda: done.append("a new one")])
    ahead.join()
    with plugin._lock, global_compiler_lock:
        print(*done, sep=", ", flush=True)

ahead.add([step, lambda: done.append("the next")])
begun.wait()
child = multiprocessing.get_context("fork").Process(target=in_child)
child.start()
child.join()
ahead.join()
print(child.exitcode, *done, sep=", ")
"""

HELD = """
import os, threading
from numba.core.compiler_lock import global_compiler_lock
from moe_lab.kernels import plugin
from moe_lab.kernels.jit import jit

held, enough = threading.Event(), threading.Event()

def compiles():
    with plugin._lock:
        with global_compiler_lock:
            held.set()
            enough.wait(0.3)
        enough.wait()

threading.Thread(target=compiles).start()
held.wait()
child = os.fork()
if child == 0:
    with plugin._lock:
        print(jit(cache=False)(lambda x: x + 1)(1), flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
enough.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_waits_for_the_present_step_and_the_child_has_a_compiler_of_its_own() -> None:
    assert python("-c", FORK).splitlines() == ["this step, a new one", "0, this step, the next"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_can_compile_whatever_other_threads_were_compiling_at_the_fork() -> None:
    assert python("-c", HELD).splitlines() == ["2", "0"]


# --- the end of the program --------------------------------------------------------------------------


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
