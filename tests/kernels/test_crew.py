"""Threads that cannot hurt: helpers change no bit, are not waited for, and nothing hangs whatever happens to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from moe_lab.errors import SettingError
from moe_lab.kernels import crew
from moe_lab.kernels.crew import Crew, address_of, run
from moe_lab.kernels.formats import FORMATS, quantised
from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import Job
from moe_lab.kernels.pointers import SIGNATURES, add_to_word, array_at, load_word

PATIENCE_S = 120
"""What no test here comes near, unless something hangs."""


@jit(cache=False)
def mark(job, item):
    """A piece that notes how often it was done, and whether all before the barrier were (job: barrier, counts)."""
    words = array_at(job, (64,), np.int64)
    if item >= words[0]:
        for i in range(words[0]):
            if load_word(job + 8 * (2 + i)) == 0:
                add_to_word(job + 8, 1)
    add_to_word(job + 8 * (2 + item), 1)


@pytest.fixture(scope="module")
def piece():
    return address_of(mark, SIGNATURES["work"])


@pytest.fixture
def made():
    crews = []

    def make(threads, **options):
        crews.append(Crew(threads, **options))
        return crews[-1]

    yield make
    for one in crews:
        one.dismiss()


@pytest.fixture
def threads():
    """``threads(n)``: how many the kernels of this process use, until the test is over."""
    yield crew.set_threads
    crew.set_threads(None)


on_two_cores = pytest.mark.skipif(
    hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < 2,
    reason="on one core helpers come in when the caller sleeps, which it does not")


@pytest.mark.parametrize("count", [1, 2, 3, np.uint8(7)])
def test_every_piece_is_done_once_and_those_behind_the_barrier_after_all_before_it(made, piece, count):
    mine = made(count)
    for _ in range(300):
        job = np.zeros(64, np.int64)
        job[0] = 20
        run(mine.address, job.ctypes.data, piece, 50, 20)
        assert (job[2:52] == 1).all() and job[1] == 0 and (job[52:] == 0).all()


@on_two_cores
def test_helpers_come_in_where_there_is_time(made, piece):
    mine, job = made(3, spins=1_000_000), np.zeros(64, np.int64)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and run(mine.address, job.ctypes.data, piece, 50, 20) == 0:
        time.sleep(0.001)
    assert time.monotonic() < deadline


@on_two_cores
def test_helpers_that_sleep_wake_again(made, piece):
    mine, job, deadline = made(2, spins=20_000), np.zeros(64, np.int64), time.monotonic() + PATIENCE_S
    for _ in range(3):
        while run(mine.address, job.ctypes.data, piece, 50, 0) == 0 and time.monotonic() < deadline:
            time.sleep(0.0002)
        while not mine._parked[0] and time.monotonic() < deadline:
            time.sleep(0.001)
    assert time.monotonic() < deadline


def test_a_dismissed_crew_goes_on_alone(made, piece):
    mine = made(3)
    address = mine.address
    mine.dismiss()
    assert not any(helper.is_alive() for helper in mine._helpers)
    job = np.zeros(64, np.int64)
    assert run(address, job.ctypes.data, piece, 50, 20) == 0 and (job[2:52] == 1).all()


def big(rng, name, D=512, F=320, S=6):
    """A problem that is large enough to be shared."""
    format = FORMATS[name]
    arena = np.zeros((S, max(format.slot_bytes(D, F), crew.SMALL // 4)), np.uint8)
    for slot in arena:
        format.encode(*(rng.standard_normal(s).astype(np.float32) / 16 for s in ((F, D), (F, D), (D, F))), slot)
    x, gates = rng.standard_normal(D).astype(np.float32), rng.random(4).astype(np.float32)
    slots = np.array([4, -1, 2, 0], np.int32)

    def token():
        out = np.full(D, np.nan, np.float32)
        format.ffn_token(x, arena, slots, gates, out, F, "silu")
        return out

    token.given = format, x, arena, slots, gates
    return token


@pytest.mark.parametrize("name", FORMATS)
def test_any_number_of_threads_gives_the_same_bits(rng, threads, name):
    token = big(rng, name)
    threads(1)
    expected = token()
    for count in (2, 3, 5):
        threads(count)
        assert all(np.array_equal(token(), expected) for _ in range(60))


@pytest.mark.parametrize("name", FORMATS)
def test_a_token_again_and_again_is_shared_as_the_threads_are_by_then(rng, threads, name):
    token = big(rng, name)
    (format, x, *rest), out = token.given, np.empty(512, np.float32)
    threads(1)
    expected = token()
    for count in (1, 3):
        threads(count)
        again = format.token_again(Job(512, 320, 4, 0), x, *rest, out)
        for later in (count, 2, 1):
            threads(later)
            for _ in range(20):
                out[:] = np.nan
                again()
                np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", ["q8", "q4"])
def test_many_tokens_have_the_same_bits_for_any_number_of_threads(rng, threads, name):
    format, D, F, N = FORMATS[name], 520, 328, 150
    slot = np.zeros(format.slot_bytes(D, F), np.uint8)
    format.encode(*(rng.standard_normal(s).astype(np.float32) / 16 for s in ((F, D), (F, D), (D, F))), slot)
    x, found = rng.standard_normal((N, D)).astype(np.float32), []
    assert N * slot.size >= quantised.SHARED_WORK
    for count in (1, 2, 3):
        threads(count)
        for _ in range(15):
            found.append(np.full((N, D), np.nan, np.float32))
            format.ffn_rows(x, slot, np.arange(N), np.ones(N, np.float32), found[-1], F, "silu")
    assert all(np.array_equal(one, found[0]) for one in found) and np.isfinite(found[0]).all()


@pytest.mark.parametrize("name", ["bf16", "q4"])
def test_callers_in_several_threads_do_not_disturb_one_another(rng, threads, name):
    token = big(rng, name)
    threads(3)
    expected, wrong = token(), []

    def call():
        wrong.extend(1 for _ in range(60) if not np.array_equal(token(), expected))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE_S)
        assert not caller.is_alive()
    assert not wrong


def test_kernels_and_torchs_own_threads_live_side_by_side(rng, threads):
    token = big(rng, "q8")
    threads(2)
    torch.set_num_threads(2)
    w, v, expected = torch.randn(512, 512), torch.randn(1, 512), token()
    product = torch.nn.functional.linear(v, w)
    for _ in range(60):
        assert torch.allclose(torch.nn.functional.linear(v, w), product, rtol=1e-3, atol=1e-3)
        assert np.array_equal(token(), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_after_a_fork_computes_with_a_crew_of_its_own(rng, threads):
    token = big(rng, "q4")
    threads(2)
    expected = token()
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE_S)
        same = all(np.array_equal(token(), expected) for _ in range(20))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(token(), expected)


def test_an_interrupt_between_or_within_kernels_leaves_them_usable():
    code = """
import signal, sys, threading, time, os
signal.signal(signal.SIGINT, signal.default_int_handler)      # a job in the background is born deaf to it
import numpy as np
sys.path[:0] = ["tests/kernels", "tests"]
from test_crew import big, crew
crew.set_threads(2)
token = big(np.random.default_rng(0), "q4")
expected = token()
for round in range(5):
    threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        while True:
            assert np.array_equal(token(), expected)
    except KeyboardInterrupt:
        pass
assert all(np.array_equal(token(), expected) for _ in range(20))
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0 and done.stdout.strip() == "fine", done.stderr


def test_a_process_ends_while_helpers_spin():
    code = """
import numpy as np, sys
sys.path[:0] = ["tests/kernels", "tests"]
from test_crew import big, crew
crew.set_threads(3)
crew.shared()._spins = 10**9
big(np.random.default_rng(0), "q4")()
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0 and done.stdout.strip() == "fine", done.stderr


def test_a_small_job_is_not_shared(rng, threads):
    mine, format = threads(3), FORMATS["q8"]
    arena, out = np.zeros((1, format.slot_bytes(64, 64)), np.uint8), np.empty(64, np.float32)
    format.ffn_token(np.ones(64, np.float32), arena, np.zeros(1, np.int32), np.ones(1, np.float32), out, 64, "silu")
    assert not mine._helpers


@pytest.mark.parametrize("asked", ["0", "-1", "many", "65", "1.5"])
def test_a_number_of_threads_that_is_none_is_refused(monkeypatch, asked):
    monkeypatch.setenv(crew.VARIABLE, asked)
    with pytest.raises(SettingError, match=f"MOE_LAB_THREADS={asked!r}.*1 to 64"):
        crew.default_threads()


def test_the_number_of_threads_is_the_variables_or_that_of_the_cores(monkeypatch):
    monkeypatch.setenv(crew.VARIABLE, "5")
    assert crew.default_threads() == 5
    monkeypatch.delenv(crew.VARIABLE)
    assert 1 <= crew.default_threads() <= (os.cpu_count() or 1)
    for wrong in (0, 65, True, "2"):
        with pytest.raises(SettingError, match="type 1 to 64"):
            Crew(wrong)
