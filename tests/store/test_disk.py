"""The simulated disk: its pace, and what it refuses."""

from __future__ import annotations

import threading
import time

import pytest

from moe_lab.errors import SettingError
from moe_lab.store import Disk


class Clock:
    """Time that passes only in a sleep, and each ends late."""

    def __init__(self) -> None:
        self.now, self.late = 100.0, 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.late


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("moe_lab.store.disk.time", clock)
    return clock


def paced(disk: Disk, size: int, clock: Clock, began: float | None = None) -> float:
    """Seconds until a load is through, by default one that begins now."""
    before = clock.now
    disk.pace(size, before if began is None else began)
    return clock.now - before


def test_a_load_takes_latency_and_bytes_over_bandwidth(clock):
    assert paced(Disk("1 MB/s", latency="10 ms"), 40_000, clock) == pytest.approx(0.05)


def test_the_mean_rate_is_right_although_every_sleep_ends_late(clock):
    disk, began, clock.late = Disk(1e8), clock.now, 1e-4
    for _ in range(100):
        paced(disk, 50_000, clock)
    assert clock.now - began == pytest.approx(0.05, abs=3e-4), "100 loads of 0.5 ms"


def test_loads_at_the_same_time_share_the_disk(clock):
    disk, began = Disk("1 MB/s"), clock.now
    threads = [threading.Thread(target=disk.pace, args=(30_000, began)) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert clock.now - began == pytest.approx(0.09)


def test_time_spent_idle_is_not_saved_up(clock):
    disk = Disk("1 MB/s")
    paced(disk, 1000, clock)
    clock.now += 0.05
    assert paced(disk, 40_000, clock) == pytest.approx(0.04)


def test_a_real_disk_that_is_slower_is_not_slowed_further(clock):
    assert paced(Disk("1 MB/s"), 10_000, clock, began=clock.now - 0.2) == 0


def test_a_new_bandwidth_is_felt_in_the_middle_of_a_load():
    disk = Disk("1 kB/s")
    thread = threading.Thread(target=disk.pace, args=(1_000_000, time.perf_counter()))
    thread.start()
    time.sleep(0.03)
    disk.bandwidth = "1 GB/s"
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("bandwidth", [0, "0 MB/s", -1, float("nan"), float("inf"), "fast", "200 MB", None, True, [1]])
def test_a_bandwidth_that_is_none_is_refused_and_the_old_one_stays(bandwidth):
    with pytest.raises(SettingError):
        Disk(bandwidth)
    disk = Disk("200 MB/s")
    with pytest.raises(SettingError):
        disk.bandwidth = bandwidth
    assert disk.bandwidth == 200e6


@pytest.mark.parametrize("latency", [-1, "slow", float("nan"), None])
def test_a_latency_that_is_none_is_refused(latency):
    with pytest.raises(SettingError):
        Disk("1 MB/s", latency=latency)


def test_it_says_that_it_is_simulated():
    assert Disk("200 MB/s").simulated is True
    assert repr(Disk("200 MB/s")) == "simulated disk, 200 MB/s"
    assert repr(Disk(1.5e9, latency="0.1 ms")) == "simulated disk, 1.5 GB/s, 0.1 ms"
