"""What the dashboard costs: the socket, the speed, the memory; each figure is printed when pytest has ended.

Measured with the pocket model at full speed and a page that paints, all of it on the processors that the test is
given. Speeds are taken in turn, with and without, and compared pair by pair, so that whatever else the machine does
strikes both. Nothing timed is asserted. ``MOE_LAB_MINUTES`` is how long the memory is watched (10).
"""

import os
import statistics
import time

import psutil
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = """
import moe_lab as ml, threading, time, psutil, torch
torch.set_num_threads(1)
from moe_lab_widgets import Lab
engine = ml.load("pocket", cache="50%", disk=ml.Disk("10 GB/s"))
OPTIONS = dict(max_new_tokens=TOKENS, stop_at_end=False, temperature=0.9)
lab = Lab(engine)
list(engine.stream("def f(", **{**OPTIONS, "max_new_tokens": 50}))
lab
"""
IN_TURN = """
PIDS, taken = BROWSER, []
def spent():
    here = psutil.Process().cpu_times()
    others = [psutil.Process(pid).cpu_times() for pid in PIDS if psutil.pid_exists(pid)]
    return time.perf_counter(), here.user + here.system, sum(t.user + t.system for t in others)
def clocked(steps):
    next(steps)                                      # the prompt
    first = spent()
    yield from steps
    taken.append([last - first for first, last in zip(first, spent())])
_stream = engine.stream
engine.stream = lambda *a, **k: clocked(_stream(*a, **k))
def in_turn(rounds):
    for _ in range(rounds):
        list(engine.stream("import os", **OPTIONS))
        time.sleep(0.5)
        lab.start("import os", **OPTIONS)
        lab.result()
        time.sleep(1.5)                              # the saved picture is renewed meanwhile
    taken.append("done")
threading.Thread(target=in_turn, args=(ROUNDS,), daemon=True).start()
"""
WITHOUT_END = """
going = True
def one_by_one():
    while going:
        lab.start("import os", **OPTIONS)
        lab.result()
threading.Thread(target=one_by_one, daemon=True).start()
"""
TOKENS, ROUNDS = 1900, 15


@pytest.fixture
def tab(open_tab):
    """A notebook with a dashboard that has been shown and has generated."""
    tab = open_tab(SETUP.replace("TOKENS", str(TOKENS)), height=1200)
    tab.run(0)
    tab.until("() => document.querySelector('.moelab canvas.map')?.dataset.seq")
    return tab


def test_the_board_takes_little_of_the_speed(tab, figure):
    browser = [p.pid for p in psutil.Process().children(recursive=True) if p.name().startswith(("chrom", "google"))]
    tab.do("lab._session.cost_s = lab._session.history._busy_s = 0.0")
    tab.do(IN_TURN.replace("BROWSER", str(browser)).replace("ROUNDS", str(ROUNDS)))
    while tab.ask("taken[-1:] != ['done']"):
        tab.page.wait_for_timeout(2000)
    taken = [t for t in tab.ask("taken") if t != "done"]
    pairs = list(zip(taken[::2], taken[1::2], strict=True))
    slower, more = (statistics.median(shown[i] / bare[i] for bare, shown in pairs) for i in (0, 1))
    bare_s, shown_s = (statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
    idle, painting = (statistics.median(1000 * pair[i][2] / pair[i][0] for pair in pairs) for i in (0, 1))
    pictures = tab.ask("lab._page.outbox.confirmed")
    figure(f"whole board: {TOKENS / bare_s:.0f} tokens/s without, {TOKENS / shown_s:.0f} with a page that paints: "
           f"{1 / slower - 1:+.1%} (median of {ROUNDS} pairs in turn)", "at most 10 % less")
    figure(f"the same in processor time of the kernel {more - 1:+.1%}; of the browser {painting:.0f} ms a second, {idle:.0f} idle")
    figure(f"the board by its own clock: {tab.ask('lab._session.cost'):.2%} of token time", "at most 2 %")
    assert pictures > 5 * sum(pair[1][0] for pair in pairs), "of ten a second, in the seconds with a page"
    assert tab.ask("lab._session.history.run") == ROUNDS


def test_the_socket_carries_little(tab, figure):
    received, sent = [], []
    cdp = tab.devtools()
    cdp.on("Network.webSocketFrameReceived", lambda e: received.append(size(e["response"])))
    cdp.on("Network.webSocketFrameSent", lambda e: sent.append(size(e["response"])))
    cdp.send("Network.enable")
    seconds = 20
    tab.do(WITHOUT_END)
    tab.page.wait_for_timeout(2000)
    received.clear()
    sent.clear()
    began = time.monotonic()
    tab.page.wait_for_timeout(1000 * seconds)
    took = time.monotonic() - began
    total = (sum(received) + sum(sent)) / took / 1000
    tab.do("going = False; lab.stop()")
    figure(f"socket at {tab.ask('lab.fps'):g} pictures a second, {(tab.ask('lab.tokens_per_s')):.0f} tokens/s, run after run, their saved "
           f"pictures included: {total:.0f} kB/s, {len(received) / took:.0f} messages a second to the page, "
           f"{len(sent) / took:.1f} back", "at most 200 kB/s")
    assert received
    assert total < 200


def size(message):
    """Bytes of a web socket message (binary ones are told in base64)."""
    return len(message["payloadData"]) * (3 / 4 if message["opcode"] == 2 else 1)


def test_memory_stays_over_ten_minutes(tab, figure):
    minutes = float(os.environ.get("MOE_LAB_MINUTES", "10"))
    cdp = tab.devtools()
    cdp.send("Performance.enable")

    def heap():
        cdp.send("HeapProfiler.collectGarbage")
        return {m["name"]: m["value"] for m in cdp.send("Performance.getMetrics")["metrics"]}

    def kernel():
        tab.page.wait_for_timeout(700)
        return tab.ask("(__import__('gc').collect(), psutil.Process().memory_info().rss)[1]") / 1e6

    def now():
        page = heap()
        # A run's record grows by doubling and goes with the next run: 22 MB up and down within two seconds.
        return page["JSHeapUsedSize"] / 1e6, page["Nodes"], min(kernel() for _ in range(6))

    def write(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            tab.do("if lab.state != 'running': lab.start('import os', max_new_tokens=1900, stop_at_end=False, temperature=0.9)")
            tab.page.wait_for_timeout(2000)

    write(60)                                        # until text, lines and rings are as long as they get
    first = now()
    write(60 * minutes)
    last = now()
    tokens = tab.ask("lab._session.history.tokens")
    tab.do("lab.stop()")
    figure(f"{minutes:g} minutes, {tokens:,} tokens: page heap {first[0]:.1f} MB, {last[0] - first[0]:+.1f} MB "
           f"(DOM nodes {first[1]:.0f}, {last[1] - first[1]:+.0f})", "at most +5 MB")
    figure(f"{minutes:g} minutes: kernel {first[2]:.0f} MB, {last[2] - first[2]:+.1f} MB", "at most +20 MB")
    assert last[1] - first[1] < 8000, "views that were made anew are let go"
    if minutes >= 10:
        assert last[0] - first[0] < 5
        assert last[2] - first[2] < 20
