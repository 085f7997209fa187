"""Results appear whole or not at all, and a folder that fails costs the keeping and not the work."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.errors import SettingError
from moe_lab.evaluation import results as keeping
from moe_lab.evaluation.results import Results, open_results

RECORD = {"losses": [1.5, float("inf")], "made": {"threads": 2}}
TRACE = ml.Trace(ids=np.zeros((3, 2, 1), np.int32), experts=4)


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "store")


def test_what_was_kept_is_found_and_nothing_else(results):
    results.put("ab12", RECORD)
    results.put_trace("ab12", TRACE)
    assert results.get("ab12") == RECORD and results.get("ab13") is None and results.get_trace("ab13") is None
    assert results.get_trace("ab12").digest() == TRACE.digest()


def test_numbers_and_keys_come_back_as_json_has_them(results):
    results.put("ab12", {"by_size": {3: (1, 2), 10: (4,)}, "half": 0.1 + 0.2})
    assert results.get("ab12") == {"by_size": {"3": [1, 2], "10": [4]}, "half": 0.1 + 0.2}


def test_one_file_under_the_name_of_another_is_no_result(results):
    results.put("ab12", RECORD)
    shutil.copy(results.folder / "ab" / "ab12.json", results.folder / "ab" / "ab13.json")
    assert results.get("ab13") is None


@pytest.mark.parametrize("length", [0, 1, 7, 100, -1])
def test_a_cut_or_overwritten_trace_is_no_result(results, length):
    results.put_trace("ab12", TRACE)
    path = results.folder / "ab" / "ab12.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    assert results.get_trace("ab12") is None
    path.write_bytes(whole[: len(whole) // 2] + b"\0" * 40 + whole[len(whole) // 2 + 40 :])
    assert results.get_trace("ab12") is None


@pytest.mark.parametrize("put", [lambda r: r.put("ab12", RECORD), lambda r: r.put_trace("ab12", TRACE)])
def test_what_is_cut_off_while_it_is_written_leaves_nothing(results, put, monkeypatch):
    def cut(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        put(results)
    assert not [path for path in results.folder.rglob("*") if path.is_file()]


def test_a_full_disk_is_said_once_and_costs_the_keeping(results, capsys, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for key in ("ab12", "ab13"):
        results.put(key, RECORD)
        results.put_trace(key, TRACE)
    assert capsys.readouterr().err == "moe_lab: results are not kept: [Errno 28] No space left on device\n"
    monkeypatch.undo()
    results.put("ab12", RECORD)
    assert results.get("ab12") == RECORD        # there is room again


def test_a_folder_that_went_away_is_made_again_and_one_that_cannot_be_costs_the_keeping(results, capsys):
    results.put("ab12", RECORD)
    shutil.rmtree(results.folder)
    assert results.get("ab12") is None
    results.put("ab12", RECORD)
    assert results.get("ab12") == RECORD and not capsys.readouterr().err
    shutil.rmtree(results.folder)
    results.folder.write_text("a file in its place")
    results.put("ab12", RECORD)
    assert results.get("ab12") is None and capsys.readouterr().err.startswith("moe_lab: results are not kept: ")


def test_a_default_folder_that_cannot_be_made_keeps_nothing_and_one_that_was_typed_is_an_error(tmp_path, monkeypatch,
                                                                                              capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(keeping, "cache_folder", lambda: tmp_path / "file")
    assert open_results(None).folder is None
    assert capsys.readouterr().err.startswith("moe_lab: results are not kept: ")
    with pytest.raises(SettingError, match="results cannot be kept in"):
        open_results(tmp_path / "file" / "store")


def test_a_sweep_whose_folder_fails_half_way_has_all_its_points(checkpoint, rng, tmp_path, monkeypatch, capsys):
    ids = rng.integers(0, 160, 61).tolist()
    engine = ml.load(str(checkpoint("olmoe")), cache=4)
    arguments = dict(routing=["original", "cache-prior", "max-rank"], cache=3, window=20)
    whole = ml.sweep(engine, ids, **arguments, store=False).to_frame()
    points = iter(sweep := ml.sweep(engine, ids, **arguments, store=tmp_path / "store"))
    next(points)
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("a file in its place")
    list(points)
    assert sweep.to_frame().equals(whole) and capsys.readouterr().err.count("results are not kept") == 1
    engine.close()
