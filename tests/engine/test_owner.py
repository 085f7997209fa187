"""Who owns the engine, and when wishes are granted."""

import asyncio
import threading

import pytest

import moe_lab as ml
from moe_lab.engine import owner as owning
from moe_lab.engine.owner import Owner
from moe_lab.errors import BusyError

PROMPT = [5, 17, 3, 90, 41]


def in_thread(f) -> list[BaseException]:  # type: ignore[no-untyped-def]
    caught: list[BaseException] = []

    def run() -> None:
        try:
            f()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught


def test_a_second_thread_is_refused_and_the_same_thread_may_nest() -> None:
    owner = Owner()
    with owner.held(), owner.held():
        (error,) = in_thread(owner.take)
        assert isinstance(error, BusyError) and "another thread" in str(error)
    assert not owner.busy and not in_thread(owner.take)


def test_a_wish_is_granted_at_once_when_nobody_generates() -> None:
    owner, done = Owner(), []
    owner.wish("a", lambda: done.append(1))
    assert done == [1]


def test_a_wish_from_another_thread_waits_for_the_next_token_and_the_newest_wins() -> None:
    owner, done = Owner(), []
    with owner.held():
        in_thread(lambda: owner.wish("slots", lambda: done.append("old")))
        in_thread(lambda: owner.wish("slots", lambda: done.append("new")))
        assert done == []
        owner.between_tokens()
        assert done == ["new"]


def test_a_wish_left_over_at_the_end_of_a_run_is_granted_then() -> None:
    owner, done = Owner(), []
    with owner.held():
        in_thread(lambda: owner.wish("slots", lambda: done.append(1)))
    assert done == [1]


def test_the_owner_is_free_again_after_an_exception() -> None:
    owner = Owner()
    with pytest.raises(KeyError), owner.held():
        raise KeyError
    assert not owner.busy


def test_a_change_that_fails_for_another_is_told_to_whoever_asked_for_it_and_the_rest_is_made() -> None:
    owner, done, told = Owner(), [], []
    with owner.held():
        in_thread(lambda: owner.wish("a", lambda: 1 / 0, lambda error: told.append(type(error))))
        in_thread(lambda: owner.wish("b", lambda: done.append(1)))
        owner.between_tokens()
    assert done == [1] and told == [ZeroDivisionError]
    with pytest.raises(ZeroDivisionError):
        owner.wish("c", lambda: 1 / 0)


def test_a_stream_of_a_thread_that_has_ended_is_over_for_whoever_comes_next() -> None:
    owner = Owner()
    claims = []
    assert not in_thread(lambda: claims.append(owner.take_stream()))
    assert not owner.busy
    with owner.held(run=True), pytest.raises(BusyError, match="another run began"):
        owner.go_on(claims[0])


def test_a_stream_that_nobody_has_asked_for_seconds_is_over_for_whoever_comes_next(monkeypatch) -> None:
    owner = Owner()
    claim = owner.take_stream()
    owner.rest(claim)
    (error,) = in_thread(owner.take)
    assert isinstance(error, BusyError) and "engine.stop()" in str(error) and "lab.stop()" in str(error)
    monkeypatch.setattr(owning, "LEFT_S", -1.0)
    assert not owner.busy and not in_thread(owner.take)


def test_a_block_of_code_is_never_taken_for_left_behind(monkeypatch) -> None:
    monkeypatch.setattr(owning, "LEFT_S", -1.0)
    owner = Owner()
    with owner.held():
        (error,) = in_thread(owner.take)
        assert isinstance(error, BusyError) and "wait for it" in str(error)


def test_a_stream_goes_on_after_a_block_that_stood_between_its_tokens() -> None:
    owner = Owner()
    claim = owner.take_stream()
    owner.rest(claim)
    with owner.held():
        assert isinstance(in_thread(lambda: owner.go_on(claim))[0], BusyError)
    assert owner.go_on(claim)
    owner.drop(claim)
    assert not owner.busy


def test_a_run_cannot_begin_inside_a_pass_of_its_own_thread() -> None:
    owner = Owner()
    with owner.held():
        owner.in_pass = True
        with pytest.raises(BusyError, match="hook"):
            owner.take_stream()


# --- on an engine -------------------------------------------------------------------------------------------


@pytest.fixture
def engine(checkpoint):
    with ml.load(str(checkpoint("olmoe")), cache=4) as made:
        yield made


def test_a_stream_may_be_asked_for_each_token_by_another_thread(engine) -> None:
    expected = engine.generate(PROMPT, max_new_tokens=12).ids

    async def serve() -> list[int]:
        stream, ids = engine.stream(PROMPT, max_new_tokens=12), []
        while (step := await asyncio.to_thread(next, stream, None)) is not None:
            ids += step.ids
            await asyncio.gather(*(asyncio.to_thread(lambda: None) for _ in range(3)))
        return ids

    assert tuple(asyncio.run(serve())) == expected and not engine.busy
    stream, ids = engine.stream(PROMPT, max_new_tokens=12), []
    for _ in range(12):
        assert not in_thread(lambda: ids.extend(next(stream).ids))
    assert tuple(ids) == expected


def test_a_stream_kept_alive_by_a_traceback_does_not_keep_the_engine(engine) -> None:
    expected = engine.generate(PROMPT, max_new_tokens=5).ids
    kept = []

    def fail() -> None:
        try:
            for _ in engine.stream(PROMPT, max_new_tokens=50):
                raise ValueError("of the loop's own")
        except ValueError as error:
            kept.append(error)

    assert not in_thread(fail)
    assert engine.generate(PROMPT, max_new_tokens=5).ids == expected and kept[0].__traceback__ is not None


def test_stop_ends_a_stream_that_another_thread_began_and_its_loop_just_ends(engine) -> None:
    steps, begun = [], threading.Event()

    def loop() -> None:
        for step in engine.stream(PROMPT, max_new_tokens=200, stop_at_end=False):
            steps.append(step)
            begun.set()

    thread = threading.Thread(target=loop)
    thread.start()
    begun.wait(20)
    assert engine.stop()
    thread.join(20)
    assert 1 <= len(steps) < 200 and not engine.busy and not engine.stop()


def test_stop_frees_the_engine_from_a_stream_at_rest_at_once(engine) -> None:
    stream = engine.stream(PROMPT, max_new_tokens=9)
    next(stream)
    assert not in_thread(engine.stop)
    assert not in_thread(lambda: engine.generate(PROMPT, max_new_tokens=2))
    assert list(stream) == []


def test_an_interrupt_as_a_pass_ends_does_not_leave_the_engine_taken(engine, monkeypatch) -> None:
    drop = Owner.drop

    def interrupted(self: Owner, claim: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Owner, "drop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, max_new_tokens=4)
    assert Owner.drop is drop
    assert engine.generate(PROMPT, max_new_tokens=4).finish == "length" and not engine.busy
    assert not in_thread(lambda: engine.generate(PROMPT, max_new_tokens=2))
