"""The digest of a file is that of its content now; a file that has not changed is read once."""

from __future__ import annotations

import json
import os

import pytest

from moe_lab.errors import ReadError
from moe_lab.store import content
from moe_lab.store.content import Stamp, contents


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 40)
    return path


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """The folder of digests, for files however young."""
    monkeypatch.setattr(content, "REST_S", -1.0)
    monkeypatch.setattr(content, "_known", {})
    return tmp_path / "memory"


@pytest.fixture
def hashed(monkeypatch):
    """Counts the files that are hashed."""
    counted, digests = [], content.digests

    def one(stretches, words):
        counted.extend(stretches)
        return digests(stretches, words)

    monkeypatch.setattr(content, "digests", one)
    return counted


def until_it_shows(path, change):
    """Make a change again and again, until the clock of the file system has gone on."""
    before = Stamp.of(path)
    while Stamp.of(path) == before:
        change()


def forget(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(content, "_known", {})


def test_an_unchanged_file_is_hashed_once_in_all_processes(file, memory, hashed, monkeypatch):
    first = contents([file], memory=memory)
    assert contents([file], memory=memory) == first and len(hashed) == 1
    forget(monkeypatch)
    assert contents([str(file)], memory=memory) == first and len(hashed) == 1


def test_a_byte_changed_in_the_middle_shows_though_the_time_is_put_back(file, memory):
    first, times = contents([file], memory=memory), os.stat(file)

    def edit():
        with open(file, "r+b") as opened:
            opened.seek(5000)
            opened.write(b"x")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    until_it_shows(file, edit)
    assert os.stat(file).st_mtime_ns == times.st_mtime_ns and os.stat(file).st_size == times.st_size
    assert contents([file], memory=memory) != first


def test_a_file_replaced_by_another_of_the_same_age_shows(file, memory, tmp_path):
    first, times, other = contents([file], memory=memory), os.stat(file), tmp_path / "other"
    other.write_bytes(b"y" * times.st_size)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, file)
    assert contents([file], memory=memory) != first


def test_an_open_file_is_what_counts_where_it_is_given(file, memory, tmp_path):
    first = contents([file], memory=memory)
    with open(file, "rb") as opened:
        (tmp_path / "other").write_bytes(b"other")
        os.replace(tmp_path / "other", file)
        assert contents([file], [opened.fileno()], memory=memory) == first
    assert contents([file], memory=memory) != first


def test_names_and_places_do_not_count(file, memory, tmp_path):
    (tmp_path / "copy").write_bytes(file.read_bytes())
    first, second = contents([file, tmp_path / "copy"], memory=memory)
    assert first == second


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'"text"', b"{}", b'{"digest": 1, "check": 2}', b"\xff\xfe"])
def test_a_damaged_memory_costs_a_reading_and_is_mended(file, memory, hashed, monkeypatch, damage):
    first = contents([file], memory=memory)
    (kept,) = memory.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage)
    forget(monkeypatch)
    assert contents([file], memory=memory) == first and len(hashed) == 2
    assert kept.read_bytes() == whole


def test_a_remembered_digest_of_another_stamp_is_not_believed(file, memory, monkeypatch):
    first = contents([file], memory=memory)
    (kept,) = memory.iterdir()
    record = json.loads(kept.read_text())
    kept.write_text(json.dumps({**record, "digest": "0" * 32}))
    forget(monkeypatch)
    assert contents([file], memory=memory) == first


def test_a_memory_that_cannot_be_written_to_costs_only_time(file, memory, monkeypatch, hashed):
    first = contents([file], memory=memory)
    memory.rename(memory.with_name("elsewhere"))
    memory.write_text("a file where the folder should be")
    forget(monkeypatch)
    assert contents([file], memory=memory) == first
    assert contents([file], memory=memory) == first and len(hashed) == 2       # in this process it is known


def test_a_file_that_may_change_again_within_a_tick_of_the_clock_is_not_remembered(file, tmp_path, hashed):
    contents([file], memory=tmp_path / "memory")
    contents([file], memory=tmp_path / "memory")
    assert len(hashed) == 2 and not (tmp_path / "memory").exists()


def test_a_user_without_a_home_has_no_memory_and_the_same_digests(file, monkeypatch, memory):
    def homeless():
        raise FileNotFoundError("no home")

    first = contents([file], memory=memory)
    monkeypatch.setattr(content, "cache_folder", homeless)
    forget(monkeypatch)
    assert contents([file]) == first


def test_of_a_file_that_is_held_open_what_was_opened_counts(file, memory, tmp_path):
    expected = contents([file], memory=memory)
    with file.open("rb") as opened:
        (tmp_path / "new").write_bytes(b"saved over")
        (tmp_path / "new").replace(file)
        assert contents([file], [opened.fileno()], memory) == expected != contents([file], memory=memory)
    file.unlink()
    with pytest.raises(ReadError, match="cannot be read"):
        contents([file], memory=memory)


def test_a_file_that_changes_while_it_is_read_has_no_digest(file, memory, monkeypatch):
    digests = content.digests

    def slow(stretches, words):
        found = digests(stretches, words)
        until_it_shows(file, lambda: file.write_bytes(file.read_bytes() + b"more"))
        return found

    monkeypatch.setattr(content, "digests", slow)
    with pytest.raises(ReadError, match="changed while it was read"):
        contents([file], memory=memory)
    assert not memory.exists()
