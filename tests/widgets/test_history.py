"""What has happened: text, points and marks, from the beginning or from where a view is."""

from types import SimpleNamespace

import pytest

from moe_lab_widgets import history as h


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def step(index, text="a", hits=6, misses=2, read_bytes=100):
    times = SimpleNamespace(read_s=0.01, route_s=0.001, experts_s=0.002, rest_s=0.007)
    return SimpleNamespace(index=index, text=text, ids=(index,), hits=hits, misses=misses, swapped=1, read_bytes=read_bytes, times=times)


def filled(count, per_token_s=0.02):
    clock = Clock()
    record = h.History(clock)
    record.begin()
    for i in range(count):
        clock.now += per_token_s
        record.took(step(i, text=f"<{i}>"))
    return record, clock


def test_text_is_told_from_where_a_view_is():
    record, _ = filled(10)
    first, pieces = record.text_since(7)
    assert first == 7
    assert [p[0] for p in pieces] == ["<7>", "<8>", "<9>"]
    assert record.text_since(10) == (10, [])


def test_text_that_is_no_longer_kept_is_not_told():
    record, _ = filled(h.TOKENS_KEPT + 5)
    first, pieces = record.text_since(0)
    assert (first, len(pieces)) == (5, h.TOKENS_KEPT)
    assert pieces[0][0] == "<5>"


def test_a_piece_knows_its_shares_of_loads_and_swaps():
    record, _ = filled(1)
    assert record.text_since(0)[1] == [["<0>", 0.25, 0.125]]


def test_a_point_covers_a_tenth_of_a_second_or_one_slow_token():
    fast, _ = filled(101, per_token_s=0.01)
    slow, _ = filled(11, per_token_s=0.5)
    assert fast.points == pytest.approx(10, abs=1)
    assert slow.points == 10
    assert slow.points_since(9)[1][0][3] == 2.0


def test_the_prompt_stays_out_of_the_rates():
    clock = Clock()
    record = h.History(clock)
    record.begin()
    clock.now += 30
    record.took(step(0, hits=0, misses=1000, read_bytes=10**9))
    clock.now += 0.2
    record.took(step(1))
    assert record.numbers() == h.Numbers(pytest.approx(5.0), 0.75, 100.0, 0.125)


def test_a_pause_is_nobody_s_time():
    record, clock = filled(20, per_token_s=0.1)
    clock.now += 60
    record.resume()
    clock.now += 0.1
    record.took(step(20))
    assert record.numbers().tokens_per_s == pytest.approx(10)


def test_the_numbers_are_means_over_two_seconds():
    record, clock = filled(100, per_token_s=0.1)
    for i in range(100, 130):
        clock.now += 0.1
        record.took(step(i, hits=8, misses=0, read_bytes=0))
    assert record.numbers().hit_rate == 1.0
    assert record.numbers().read_bytes_per_token == 0


def test_a_drag_is_one_mark_and_another_knob_another():
    record, _ = filled(3)
    for slots in (17, 18, 19):
        record.mark("slots", f"{slots} slots")
    record.mark("routing", "original")
    assert [m["words"] for m in record.marks()] == ["19 slots", "original"]


def test_nothing_is_marked_before_the_first_token():
    record = h.History(Clock())
    record.mark("slots", "17 slots")
    assert record.marks() == []


def test_a_new_run_begins_with_an_empty_text_and_goes_on_in_the_lines():
    record, _ = filled(30)
    points = record.points
    record.begin()
    assert record.text_since(0) == (0, [])
    assert record.points == points
    assert record.tokens == 30
