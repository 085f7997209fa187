"""Who owns the engine, and when wishes are granted."""

import threading

import pytest

from moe_lab.engine.owner import Owner
from moe_lab.errors import BusyError


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
