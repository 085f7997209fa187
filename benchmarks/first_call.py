"""What the first run after an installation waits for, and what is compiled in it. One command:

    python benchmarks/first_call.py [--weights bf16 q8] [--most 20]

Each line is a process of its own with the pocket model. ``first`` finds no kernel on disk and generates at once;
``again`` finds what ``first`` kept; ``typed later`` finds none either, but its prompt comes when the compiling in the
background is over. ``waits`` is what the thread that loads or generates spent in numba: compiling, reading kernels
from disk, or until another thread had compiled. Wall time hangs on what else the machine does; CPU time is of all
threads, so the load's and the first token's hold what the background did meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from typing import Any

RUNS = {"first": False, "again": False, "typed later": True}
"""Processes by name, and whether each waits for the background before it generates."""


def child(weights: str, wait: bool) -> None:
    """Load, generate two tokens, say as JSON what it took."""
    from numba.core import event

    spent, compiled, mine = [0.0], Counter[str](), threading.current_thread()

    class Waiting(event.TimingListener):
        """Seconds of this thread in numba, outermost calls only."""

        def notify(self, event: Any) -> None:
            if threading.current_thread() is mine:
                super().notify(event)

    class Compiling(event.Listener):
        """CPU seconds of each function without those it called for: one stack serves, numba compiles in one thread."""

        def __init__(self) -> None:
            self._open: list[tuple[float, float]] = []          # began, seconds of those inside

        def on_start(self, event: Any) -> None:
            self._open.append((time.thread_time(), 0.0))

        def on_end(self, event: Any) -> None:
            began, inside = self._open.pop()
            took = time.thread_time() - began
            if self._open:
                self._open[-1] = self._open[-1][0], self._open[-1][1] + took
            function = event.data["dispatcher"].py_func
            compiled[f"{function.__module__}.{function.__qualname__}"] += took - inside

    waiting = Waiting()
    event.register("numba:compiler_lock", waiting)
    event.register("numba:compile", Compiling())
    steps = {}

    def step(name: str, work: Any) -> Any:
        waits = waiting.duration if waiting.done else 0.0
        wall, cpu, before = time.perf_counter(), time.process_time(), len(compiled)
        found = work()
        spent[0] = (waiting.duration if waiting.done else 0.0) - waits
        steps[name] = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "waits_s": spent[0],
                       "kernels": len(compiled) - before}
        return found

    def library() -> Any:
        import moe_lab as ml

        return ml, ml.load          # the second brings torch and transformers

    ml, _ = step("import", library)
    engine = step("load", lambda: ml.load("pocket", weights=weights))
    if wait:
        others = [thread for thread in threading.enumerate() if thread.name == "moe-lab-compiler"]
        step("(waiting)", lambda: [thread.join() for thread in others])
    stream = engine.stream("def add(a, b):", max_new_tokens=3, stop_at_end=False)
    for name in ("token 1", "token 2", "token 3"):
        step(name, lambda: next(stream))
    print(json.dumps({"steps": steps, "compiled": compiled}))


def run(weights: str, wait: bool, folder: str) -> dict[str, Any]:
    """What ``child`` says in a process that keeps kernels in ``folder``."""
    words = [sys.executable, __file__, "--child", weights, *(["--wait"] if wait else [])]
    said = subprocess.run(words, check=True, stdout=subprocess.PIPE, env={**os.environ, "NUMBA_CACHE_DIR": folder})
    found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print a line for each step, and what was compiled, the dearest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=["bf16", "q8"])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--most", type=int, default=20, help="functions to name")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.wait)
    print(f"{'':6}{'':13}{'':11}{'wall':>8}{'CPU':>8}{'waits':>8}  seconds; functions compiled meanwhile")
    for weights in args.weights:
        with tempfile.TemporaryDirectory() as folder:
            for name in args.runs:
                with tempfile.TemporaryDirectory() as own:
                    found = run(weights, RUNS[name], own if RUNS[name] else folder)
                for step, took in found["steps"].items():
                    print(f"{weights:6}{name:13}{step:11}{took['wall_s']:8.2f}{took['cpu_s']:8.2f}{took['waits_s']:8.2f}"
                          f"  {took['kernels']}")
                total = sum(found["compiled"].values())
                print(f"{weights:6}{name:13}compiled {len(found['compiled'])} functions, {total:.1f} s of CPU")
                if name == "first":
                    for function, took in Counter(found["compiled"]).most_common(args.most):
                        print(f"{'':19}{took:6.2f}  {function}")
    return None


if __name__ == "__main__":
    main()
