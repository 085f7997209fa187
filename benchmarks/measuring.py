"""What the benchmarks of kernels share: whom they ran on, who takes turns with whom, and how a table is printed.

Knows clocks, medians and Markdown; knows no kernel. On one thread a time is the thread's own processor time, so that
other programs cost a contender nothing but cache and memory bandwidth; on several it is the wall's, and only a quiet
machine gives fair figures.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numba
import numpy as np
import psutil
import torch

from moe_lab.kernels import crew
from moe_lab.kernels.instructions import possible

APART = 0.25
"""A segment is dropped where the plain reads around it differ by more than this share."""
REST_S = 0.02
"""Before a contender on several threads: time for the last one's helpers to fall asleep."""


def machine() -> str:
    """One line of what ran: processor, memory, versions, day and load."""
    cpu = platform.processor() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        names = [line.split(":", 1)[1].strip() for line in listed.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    return (f"{cpu} ({possible()[0]}), {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
            f"{platform.system()}; Python {platform.python_version()}, torch {torch.__version__}, numba "
            f"{numba.__version__}; {dt.date.today()}, load {load:.1f}")


def use_threads(threads: int) -> None:
    """Let torch and our kernels use so many."""
    torch.set_num_threads(threads)
    crew.set_threads(threads)


def clock_of(threads: int) -> Callable[[], float]:
    """The thread's processor time for one, the wall's for several."""
    return time.thread_time if threads == 1 else time.perf_counter


@dataclass
class Contender:
    """Somebody who does the same work as the others."""

    name: str
    make: Callable[[], Callable[[], object]]
    """Makes the next piece of work ready, untimed, and returns what is timed."""
    units: int = 1
    """What a time is divided by."""
    touched: int = 0
    """Bytes of weights that a unit reads."""
    after: Callable[[], object] = lambda: None
    """What is to be done afterwards, untimed."""
    error: float = math.nan
    """Of its result, relative RMS against float32."""
    seconds: list[float] = field(default_factory=list)
    """Of a unit, round by round; NaN where the round was not quiet."""
    shares: list[float] = field(default_factory=list)
    """Bytes a second over those of a plain read, in quiet rounds."""

    @property
    def median_s(self) -> float:
        """Seconds of a unit; NaN if no round was quiet."""
        return median(self.seconds)

    def faster_than(self, other: Contender) -> float:
        """Median, over rounds, of the other's time over ours."""
        return median([b / a for a, b in zip(self.seconds, other.seconds, strict=True)])


def median(values: Sequence[float]) -> float:
    """Of those that are not NaN; NaN of none."""
    kept = [value for value in values if not math.isnan(value)]
    return statistics.median(kept) if kept else math.nan


def take_turns(contenders: list[Contender], rounds: int, threads: int,
               read: Callable[[], float] | None = None) -> list[float]:
    """Time every contender once a round, in random order, after one round of warm-up that is left out.

    ``read``: a plain read, in bytes a second, before and after each. Returns the reads of the quiet rounds.
    """
    clock, reads = clock_of(threads), []
    for one in contenders:
        one.seconds, one.shares = [], []
    for turn in range(rounds + 1):
        for one in random.sample(contenders, len(contenders)):
            work = one.make()
            if threads > 1:
                time.sleep(REST_S)
            before = read() if read else 0.0
            began = clock()
            work()
            took = (clock() - began) / one.units
            one.after()
            after = read() if read else 0.0
            if turn:
                quiet = abs(before - after) <= APART * max(before, after)
                one.seconds.append(took if quiet else math.nan)
                if quiet and read:
                    reads += [before, after]
                    one.shares.append(one.touched / took / ((before + after) / 2))
    return reads


def error_of(found: np.ndarray, exact: np.ndarray) -> float:
    """Relative RMS."""
    return float(np.linalg.norm(np.asarray(found, np.float64).ravel() - exact.ravel()) / np.linalg.norm(exact))


class Table:
    """Rows that are printed as they come, in columns (the first to the left) or as Markdown."""

    def __init__(self, columns: Sequence[str], widths: Sequence[int], markdown: bool) -> None:
        self._widths, self._markdown = widths, markdown
        self.row(*columns)
        if markdown:
            print("|" + "---|" * len(columns), flush=True)

    def row(self, *cells: object) -> None:
        """One line."""
        words = [str(cell) for cell in cells]
        if self._markdown:
            print("| " + " | ".join(words) + " |", flush=True)
        else:
            first, *rest = (word.ljust(w) if i == 0 else word.rjust(w)
                            for i, (word, w) in enumerate(zip(words, self._widths, strict=True)))
            print(first, *rest, sep="  ", flush=True)


def number(value: float, digits: int = 2) -> str:
    """With so many digits behind the point; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"
