"""The simulated disk: its pace, and what it refuses."""

from __future__ import annotations

import threading
import time

import pytest

from moe_lab.errors import SettingError
from moe_lab.store import Disk


def paced(disk: Disk, size: int) -> float:
    began = time.perf_counter()
    disk.pace(size, began)
    return time.perf_counter() - began


def test_a_load_takes_latency_and_bytes_over_bandwidth():
    assert 0.05 <= paced(Disk("1 MB/s", latency="10 ms"), 40_000) < 0.2


def test_the_mean_rate_is_right_although_every_sleep_ends_late():
    disk, began = Disk(1e8), time.perf_counter()
    for _ in range(100):
        disk.pace(50_000, time.perf_counter())
    elapsed = time.perf_counter() - began
    assert 0.049 < elapsed < 0.075, "100 loads of 0.5 ms; a sleep of 0.5 ms alone ends some 0.1 ms late"


def test_loads_at_the_same_time_share_the_disk():
    disk, began = Disk("1 MB/s"), time.perf_counter()
    threads = [threading.Thread(target=disk.pace, args=(30_000, began)) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert time.perf_counter() - began >= 0.09


def test_time_spent_idle_is_not_saved_up():
    disk = Disk("1 MB/s")
    paced(disk, 1000)
    time.sleep(0.05)
    assert paced(disk, 40_000) >= 0.037


def test_a_real_disk_that_is_slower_is_not_slowed_further():
    disk = Disk("1 MB/s")
    began = time.perf_counter() - 0.2
    before = time.perf_counter()
    disk.pace(10_000, began)
    assert time.perf_counter() - before < 0.05


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
