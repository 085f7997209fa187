"""Frames: what a byte means, and when a view is sent one."""

import numpy as np
from fake_engine import FakeEngine

from moe_lab_widgets import frames


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def snapshot(tokens: int = 40):
    engine = FakeEngine(L=3, E=16, K=4, slots=6)
    for _ in engine.stream("a", max_new_tokens=tokens):
        pass
    return engine.telemetry.snapshot()


def test_each_bit_of_a_cell_is_a_fact_of_the_snapshot():
    now = snapshot()
    cells = frames.cells(now)
    assert ((cells & frames.RESIDENT > 0) == now.resident).all()
    assert ((cells & frames.USED > 0) == now.used).all()
    assert ((cells & frames.LOADED > 0) == (now.loaded & now.resident)).all()
    assert ((cells & frames.SWAPPED > 0) == now.swapped).all()


def test_the_ramp_rises_with_the_uses_and_uses_its_whole_range():
    now = snapshot(400)
    level = frames.cells(now) >> 4
    order = np.argsort(now.uses.ravel())
    assert (np.diff(level.ravel()[order].astype(int)) >= 0).all()
    assert level.max() == frames.LEVELS - 1


def test_who_has_come_since_the_last_frame_counts_as_just_loaded():
    now = snapshot()
    before = now.resident.copy()
    layer, expert = np.argwhere(now.resident & ~now.loaded)[0]
    before[layer, expert] = False
    assert frames.cells(now, before)[layer, expert] & frames.LOADED
    assert not frames.cells(now, now.resident)[layer, expert] & frames.LOADED


def test_a_frame_has_32_bytes_and_one_for_each_expert():
    now = snapshot()
    data = frames.pack(7, now, still=True)
    assert len(data) == 32 + 3 * 16
    version, flags, layers, experts, slots, sequence, token, sent, _ = frames.HEADER.unpack(data[:32])
    assert (version, flags, layers, experts, slots, sequence, token) == (frames.VERSION, frames.STILL, 3, 16, 6, 7, 40)
    assert sent > 1.6e12


def test_at_most_fps_frames_leave_in_a_second_however_often_one_asks():
    clock = Clock()
    box = frames.Outbox(fps=10, clock=clock)
    sent = 0
    for _ in range(2000):
        clock.now += 0.001
        if box.due():
            box.heard(box.next())
            sent += 1
    assert 19 <= sent <= 21


def test_without_receipts_the_window_closes_and_one_frame_is_tried_every_two_seconds():
    clock = Clock()
    box = frames.Outbox(fps=10, clock=clock)
    sent = []
    for _ in range(10_000):
        clock.now += 0.001
        if box.due():
            box.next()
            sent.append(clock.now)
    assert len(sent) - frames.Outbox.WINDOW in (3, 4)
    assert all(later - earlier >= 1.99 for earlier, later in zip(sent[-3:], sent[-2:], strict=False))


def test_one_cumulative_receipt_opens_the_window_again():
    clock = Clock()
    box = frames.Outbox(fps=10, clock=clock)
    while box.sequence < frames.Outbox.WINDOW:
        clock.now += 0.1
        box.next()
    clock.now += 0.1
    assert not box.due()
    box.heard(box.sequence)
    assert box.due()


def test_a_receipt_for_a_frame_that_was_never_sent_is_not_believed():
    box = frames.Outbox()
    box.next()
    box.heard(10**9)
    assert box.confirmed == 1


def test_where_receipts_cannot_come_the_window_stays_open():
    clock = Clock()
    box = frames.Outbox(fps=10, clock=clock)
    box.patient = False
    for _ in range(50):
        clock.now += 0.11
        assert box.due()
        box.next()
