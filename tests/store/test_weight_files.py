"""Weight files held open: read on as they were opened, whatever happens to their names, and refused once changed."""

from __future__ import annotations

import gc
import os
import time
import weakref

import numpy as np
import pytest

from moe_lab.errors import CheckpointError
from moe_lab.store import WeightFiles

CONTENT = bytes(range(200))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(CONTENT)
    time.sleep(0.02)                        # a change within one tick of the clock has no other time
    return path


def read(files, number=0, count=8, offset=100):
    found = np.zeros(count, np.uint8)
    files.fill(number, [found], offset)
    return found.tobytes()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def rewritten(path, content=bytes(200), times=None):
    with path.open("r+b") as file:
        file.write(content)
    if times is not None:
        os.utime(path, ns=times)


def replaced(path):
    path.with_name("b").write_bytes(bytes(200))
    path.with_name("b").replace(path)


HARMLESS = {
    "replaced by another": replaced,
    "deleted": lambda path: path.unlink(),
    "moved": lambda path: path.rename(path.with_name("b")),
    "moved, another in its place": lambda path: (path.rename(path.with_name("b")), path.write_bytes(bytes(200))),
    "linked": lambda path: os.link(path, path.with_name("b")),
    "made read-only": lambda path: path.chmod(0o400),
    "read": lambda path: path.read_bytes(),
    "moved with its folder": lambda path: path.parent.rename(path.parent.with_suffix(".moved")),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_a_file_is_read_on_as_it_was_opened_when_it_is(path, what):
    files = WeightFiles.open([path])
    assert read(files) == CONTENT[100:108]
    HARMLESS[what](path)
    assert read(files) == read(files) == CONTENT[100:108]


CHANGED = {
    "written over": lambda path, before: rewritten(path),
    "written over with its old time": lambda path, before: rewritten(path, times=(0, before.st_mtime_ns)),
    "saved anew under its name": lambda path, before: path.write_bytes(bytes(200)),
    "cut": lambda path, before: os.truncate(path, 150),
    "cut before the place": lambda path, before: os.truncate(path, 50),
    "longer": lambda path, before: path.write_bytes(CONTENT + b"more"),
    "written over and linked": lambda path, before: (rewritten(path), os.link(path, path.with_name("b"))),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_file_that_was_changed_in_place_is_refused_for_good(path, what):
    files = WeightFiles.open([path])
    read(files)
    CHANGED[what](path, path.stat())
    for _ in range(2):
        with pytest.raises(OSError, match=r"changed in place.*load the model again"):
            read(files)


def test_a_change_after_a_harmless_one_is_noticed(path):
    files = WeightFiles.open([path])
    path.chmod(0o600)
    read(files)
    rewritten(path, times=(0, path.stat().st_mtime_ns))
    with pytest.raises(OSError, match="changed in place"):
        read(files)


def test_only_the_changed_file_is_refused(path, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(CONTENT)
    files = WeightFiles.open([path, other])
    rewritten(path)
    assert read(files, 1) == CONTENT[100:108]
    with pytest.raises(OSError, match="changed"):
        read(files, 0)


def test_a_relative_path_is_kept_as_a_whole_one(path, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(path.parent)
    files = WeightFiles.open([path.relative_to(path.parent)])
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert list(files) == [path]
    assert read(files) == CONTENT[100:108]


def test_closed_files_say_so(path):
    files = WeightFiles.open([path])
    files.close()
    files.close()
    assert files.descriptors == ()
    with pytest.raises(OSError, match="closed; load the model again"):
        read(files)


def test_a_descriptor_that_was_given_to_another_file_is_not_read(path, tmp_path):
    files = WeightFiles.open([path])
    (tmp_path / "b").write_bytes(bytes(200))
    with (tmp_path / "b").open("rb") as other:
        os.dup2(other.fileno(), files.descriptors[0])
    with pytest.raises(OSError, match="closed"):
        read(files)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_files_are_closed_when_nobody_has_them_any_more(path):
    before = open_descriptors()
    gc.disable()
    try:
        files = WeightFiles.open([path, path])
        gone = weakref.ref(files)
        assert open_descriptors() == before + 2
        del files
        assert gone() is None
        assert open_descriptors() == before
    finally:
        gc.enable()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_one_file_that_cannot_be_opened_leaves_none_open(path):
    before = open_descriptors()
    with pytest.raises(CheckpointError, match=r"gone\.safetensors cannot be opened"):
        WeightFiles.open([path, path.with_name("gone.safetensors")])
    assert open_descriptors() == before


@pytest.mark.parametrize("most", [7, 64, 1 << 30])
def test_many_buffers_are_filled_in_pieces(path, monkeypatch, most):
    monkeypatch.setattr("moe_lab.store.files._MOST_BYTES", most)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:5]], offset))
    buffers = [np.zeros(size, np.uint8) for size in (10, 0, 33, 1)]
    WeightFiles.open([path]).fill(0, buffers, 20)
    assert b"".join(buffer.tobytes() for buffer in buffers) == CONTENT[20:64]


def test_a_read_behind_the_end_says_how_much_is_missing(path):
    with pytest.raises(EOFError, match="ends at 200, 4 bytes short"):
        read(WeightFiles.open([path]), offset=196)
