"""Files of strangers: small deviations are taken, and whatever is wrong is told in one way."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_lab.errors import TraceError
from moe_lab.trace import Trace

ROUTES = b"turn,phase,step,layer,slot,expert\n0,1,0,0,0,5\n0,1,0,0,1,2\n"
MARK = b"\xef\xbb\xbf"


def reads(path: Path, data: bytes) -> list:
    path.write_bytes(data)
    return Trace.read(path).ids.tolist()


# --- small deviations ------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [
    MARK + ROUTES, ROUTES + b"\n", ROUTES + b"  \n\n", b"\n" + ROUTES.replace(b"\n", b"\n\n"), ROUTES.rstrip(),
    ROUTES.replace(b"\n", b"\r\n"), ROUTES.replace(b"\n", b"\r"), ROUTES.replace(b",", b", "), ROUTES + b",,,,,\n",
    ROUTES.replace(b"0,1,0", b'"0","1", "0"'), b" # n_row=2\n" + ROUTES + b"\n", b"# n_row=2,,,,,\r\n" + ROUTES])
def test_a_csv_may_have_a_mark_blank_lines_spaces_quotes_and_any_line_ends(data: bytes, tmp_path: Path) -> None:
    assert reads(tmp_path / "a.csv", data) == [[[5, 2]]]


def test_a_csv_that_a_spreadsheet_saved_again_is_the_same_trace(tmp_path: Path) -> None:
    trace = Trace(ids=np.array([[[0, 1]], [[2, 1]]]), weights=np.full((2, 1, 2), 0.25), experts=4,
                  meta={"model": 'a "b", c', "layers": [3]})
    trace.write(path := tmp_path / "a.csv")
    rows = list(csv.reader(path.read_text().splitlines()))
    wide = max(map(len, rows))
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([row + [""] * (wide - len(row)) for row in rows])
    again = Trace.read(path)
    assert again.digest() == trace.digest() and (again.experts, again.meta) == (4, trace.meta)


@pytest.mark.parametrize("data", [
    MARK + b'{"layers": [[5, 2]]}\n', b'\n\r\n{"layers": [[5, 2]]}\r\n\n', b' {"layers":\t[[5, 2]]}'])
def test_json_lines_may_have_a_mark_blank_lines_and_any_line_ends(data: bytes, tmp_path: Path) -> None:
    assert reads(tmp_path / "a.jsonl", data) == [[[5, 2]]]


# --- what is wrong, with its line -------------------------------------------------------------------

LONG = "9" * 5000           # digits that Python refuses to read


@pytest.mark.parametrize(("text", "said"), [
    ('{"layers": []}', "expected an object with 'layers'"), ("5", "expected an object"), ("null", "expected an object"),
    ('{"layers": ' + "[" * 5000 + "]" * 5000 + "}", "is no trace: RecursionError"),
    (f'{{"layers": [[{LONG}]]}}', "expected one whole JSON object"),
    ('{"layers": [[32767]]}', "expert ids are whole numbers from 0 to 32766"),
    ('{"layers": [[0]], "token": 99999999999999999999}', "expected 'token', a whole number"),
    ('{"layers": [[0]], "weights": [[NaN]]}', "weights are finite numbers from 0"),
    ('{"layers": [[0]], "weights": [[1e400]]}', "weights are finite"),
    ('{"layers": [[0]], "weights": [[-0.5]]}', "weights are finite"),
    ('{"layers": [[0]], "weights": 5}', "expected 'weights' with one number per expert"),
    ('{"layers": [[0]], "K": 1000000000}', "expected 'K'"),
    ('{"layers": [[0]], "experts": 40000}', "expected 'experts'")])
def test_a_json_line_that_cannot_be_is_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=rf"a\.jsonl, line 3:? {said}"):
        reads(tmp_path / "a.jsonl", f"\n\n{text}\n".encode())


@pytest.mark.parametrize(("text", "said"), [
    ("0,1,0,0,2,32767,0.5,1", "expected phase 0 or 1, .* expert from 0 to 32766"),
    ("0,1,0,0,32767,3,0.5,1", "slot and expert from 0 to 32766"), ("0,1,0,0,2,3,nan,1", "a weight that is finite"),
    ("0,1,0,0,2,3,-1,1", "finite and from 0"), (f"0,1,0,0,2,3,0.5,{2**63}", "a token of 64 bits"),
    (f"0,1,0,0,2,{LONG},0.5,1", "expected whole numbers"), ("1" * 200_000 + ",", "is no trace: Error: field larger"),
    ('"0,1', "expected 8 columns .* found 1"), ("\x00", "expected 8 columns")])
def test_a_row_of_a_csv_that_cannot_be_is_named(text: str, said: str, tmp_path: Path) -> None:
    head = "turn,phase,step,layer,slot,expert,weight,token\n0,1,0,0,0,1,0.5,1\n\n"
    with pytest.raises(TraceError, match=rf"a\.csv, line 4:? .*{said}"):
        reads(tmp_path / "a.csv", f"{head}{text}\n".encode())


@pytest.mark.parametrize(("head", "said"), [
    ("# n_expert_used=1000000000", "has slots .0, 1., expected 0 to 999999999"),
    ("# n_slot=1000000000", "n_slot up to"), ("# n_expert=99999999999", "experts=99999999999 must be"),
    ("# meta [1]", "meta must be a dict"),
    (f"# n_row={LONG}", "is no trace: ValueError")])
def test_a_header_of_a_csv_that_cannot_be_is_refused_before_room_is_made_for_it(head: str, said: str,
                                                                                tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=rf"a\.csv.*{said}"):
        reads(tmp_path / "a.csv", head.encode() + b"\n" + ROUTES)


# --- archives and tables ----------------------------------------------------------------------------

IDS = np.array([[[0, 1]]])


@pytest.mark.parametrize(("arrays", "said"), [
    ({"ids": np.array([[[2**40, 1]]])}, "expert 1099511627776 is out of range"),
    ({"ids": IDS, "experts": np.float64(4.7)}, "experts=.* must be a whole number"),
    ({"ids": IDS, "experts": np.array([4, 5])}, "experts=.* must be a whole number"),
    ({"ids": IDS, "meta": np.array("[1]")}, "meta must be a dict"), ({"ids": IDS, "phase": np.array([256])}, "not 256"),
    ({"ids": IDS, "tokens": np.array([1.5])}, "1.5 at token 0"), ({"ids": np.arange(3)}, r"ids must be \(tokens")])
def test_arrays_of_an_npz_that_cannot_be_are_refused(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(TraceError, match=rf"a\.npz: .*{said}"):
        Trace.read(tmp_path / "a.npz")


def test_an_npz_that_claims_absurd_sizes_is_no_trace(tmp_path: Path) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<i4", "fortran_order": False, "shape": (2**50, 1, 2)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("ids.npy", head.getvalue() + bytes(64))
    with pytest.raises(TraceError, match=r"a\.npz is no trace: MemoryError"):
        Trace.read(tmp_path / "a.npz")


@pytest.mark.parametrize(("change", "said"), [
    ({"token": np.array([2**63, 1], np.uint64)}, "row 0: expected token from 0"),
    ({"step": [2**62, 0]}, "expected .* rows"), ({"phase": [0, 256]}, "not 256"),
    ({"weights": [[1e300, 0.5], [0.5, 0.5]]}, "weights must be finite numbers"),
    ({"experts": [[0, 32767], [1, 2]]}, "whole numbers from 0 to 32766"),
    ({"logits": [[1e9] * 4] * 2}, "logits must be"),
    ({"step": [0, 0], "layer": [0, 1]}, "expected one phase for each step, and the layers of step 0 have several")])
def test_columns_of_a_parquet_file_that_cannot_be_are_refused(change: dict[str, Any], said: str,
                                                              tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pandas as pd

    columns = {"step": [0, 1], "layer": [0, 0], "phase": [0, 1], "experts": [[0, 1], [2, 3]], **change}
    pd.DataFrame(columns).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(TraceError, match=rf"a\.parquet.*{said}"):
        Trace.read(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".jsonl", ".csv"])
def test_a_damaged_file_is_read_or_is_a_trace_error_and_nothing_else(suffix: str, tmp_path: Path,
                                                                     rng: np.random.Generator) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"a{suffix}"
    Trace(ids=np.array([[[0, 1]], [[2, 1]]]), weights=np.full((2, 1, 2), 0.25), experts=4, meta={"a": 1}).write(path)
    data = path.read_bytes()
    refused = []
    for _ in range(100):
        damaged = bytearray(data)
        for at in rng.integers(len(data), size=3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            Trace.read(path)
        except TraceError as error:
            refused.append(str(path) in str(error))
    assert all(refused) and len(refused) > 20


def test_the_number_of_experts_asked_for_is_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"layers": [[0, 1]]}))
    assert Trace.read(tmp_path / "a.jsonl", experts=np.int64(8)).experts == 8
    with pytest.raises(TraceError, match=r"experts=2\.5 must be a whole number"):
        Trace.read(tmp_path / "a.jsonl", experts=2.5)
