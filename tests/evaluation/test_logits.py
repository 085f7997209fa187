"""Logits that were kept come back bit by bit; those without room come back as None."""

from __future__ import annotations

import shutil
import tempfile

import pytest
import torch

from moe_lab.evaluation.logits import KeptLogits


def windows(n):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(3 + i, 16, generator=draw).to(torch.bfloat16 if i % 2 else torch.float32) for i in range(n)]


def test_kept_logits_come_back_in_their_own_type(tmp_path):
    kept, given = KeptLogits(tmp_path, 1 << 20), windows(4)
    for logits in given:
        kept.add(logits)
    assert all(torch.equal(kept.get(i), logits) and kept.get(i).dtype == logits.dtype for i, logits in enumerate(given))
    assert kept.get(4) is None and not list(tmp_path.iterdir())         # the file has no name
    kept.close()
    assert kept.get(0) is None


def test_what_has_no_room_is_not_kept_nor_is_anything_after_it(tmp_path):
    kept, given = KeptLogits(tmp_path, 3 * 16 * 4 + 10), windows(4)
    for logits in given:
        kept.add(logits)
    assert [kept.get(i) is not None for i in range(4)] == [True, False, False, False]


def test_a_write_that_fails_keeps_what_was_written_before(tmp_path):
    kept, (first, second, third, _) = KeptLogits(tmp_path, 1 << 20), windows(4)
    kept.add(first)
    file = kept._file

    class Full:
        def write(self, view):
            file.write(view[:5])
            raise OSError("no space left")

        def __getattr__(self, name):
            return getattr(file, name)

    kept._file = Full()
    kept.add(second)
    kept._file = file
    kept.add(third)
    assert torch.equal(kept.get(0), first) and kept.get(1) is None


@pytest.mark.parametrize("folder", ["gone", "file"])
def test_where_the_folder_cannot_be_used_the_systems_own_is(tmp_path, folder):
    (tmp_path / "file").write_text("")
    kept = KeptLogits(tmp_path / folder, 1 << 20)
    kept.add(torch.ones(2, 2))
    assert torch.equal(kept.get(0), torch.ones(2, 2))


def test_without_any_folder_nothing_is_kept(tmp_path, monkeypatch):
    def none(*args, **kwargs):
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(tempfile, "TemporaryFile", none)
    kept = KeptLogits(tmp_path, 1 << 20)
    kept.add(torch.ones(2, 2))
    assert kept.get(0) is None
    kept.close()


def test_at_most_half_of_what_is_free_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 2 * 3 * 16 * 4 + 2))
    kept, (first, second, *_) = KeptLogits(tmp_path, 1 << 20), windows(4)
    kept.add(first)
    kept.add(second)
    assert kept.get(0) is not None and kept.get(1) is None
