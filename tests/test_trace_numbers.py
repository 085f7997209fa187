"""Numbers of a trace: whole and in range, or refused with their place before any cast changes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_lab.errors import TraceError
from moe_lab.trace import Trace


@pytest.mark.parametrize(("ids", "said"), [
    (np.array([[[2**32 + 5, 1]]]), "token 0, layer 0: expert 4294967301 is out of range, ids go from 0 to 32766"),
    (np.array([[[1, 2**32 - 1]]], np.uint32), "token 0, layer 0: expert 4294967295 is out of range"),
    ([[[2**70, 1]]], "whole numbers, not object: 1180591620717411303424 at token 0, layer 0, place 0"),
    (np.array([[[32767]]]), "expert 32767 is out of range, ids go from 0 to 32766"),
    (np.array([[[1.0, 0.9]]]), "ids must be whole numbers, not float64: 0.9 at token 0, layer 0, place 1"),
    (np.array([[[0, np.nan]]]), "nan at token 0, layer 0, place 1"),
    (np.array([[[0, np.inf]]]), "inf at token 0, layer 0, place 1"),
    (np.array([[[1.0, 2.0]]]), r"not float64; type ids\.astype\(np\.int64\)"),
    (np.array([[[True, False]]]), "ids must be whole numbers, not bool: True at"),
    ([[[2, True]]], "there are bools among them"), ([[["1", "2"]]], "ids must be whole numbers, not <U1"),
    (np.array([[[{}]]]), "not object: {} at token 0"), ([[[1], [2, 3]]], "ids must be an array of numbers"),
    (None, "ids must be an array of numbers, not None")])
def test_ids_are_never_cut_off_or_wrapped_round(ids: object, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        Trace(ids=ids)


@pytest.mark.parametrize(("field", "value", "said"), [
    ("phase", np.array([257]), "token 0: phase is 0 .prefill. or 1 .decode., not 257"),
    ("phase", [0.5], "0.5 at token 0"), ("phase", [True], "phase must be whole numbers, not bool"),
    ("phase", [np.nan], "nan at token 0"),
    ("phase", 1, r"phase must be \(1,\) to fit the ids, not \(\)"),
    ("tokens", [1.5], "tokens must be whole numbers, not float64: 1.5 at token 0"),
    ("tokens", np.array([2**63], np.uint64), "not 9223372036854775808 at token 0"), ("tokens", ["a"], "not <U1"),
    ("weights", [[[0.5, np.nan]]], "weights must be finite numbers from 0 to 3.40282e.38, not nan at token 0, layer 0"),
    ("weights", [[[np.inf, 1]]], "not inf at"), ("weights", [[[-0.5, 1]]], "not -0.5 at token 0, layer 0, place 0"),
    ("weights", [[[1e39, 1]]], "not 1e.39 at"), ("weights", [[[True, False]]], "weights must be numbers, not bool"),
    ("logits", [[[0, np.nan, 1]]], "logits must be finite numbers from -65504 to 65504, not nan at token 0, layer 0, "),
    ("logits", [[[0, 70000.0, 1]]], "not 70000.0 at"), ("logits", [[[np.inf, 0, 1]]], "not inf at"),
    ("logits", [[["a", "b", "c"]]], "logits must be numbers, not <U1"),
    ("experts", 2.5, "experts=2.5 must be a whole number up to 32,767"), ("experts", True, "experts=True must be"),
    ("experts", 2**15, "experts=32768 must be"), ("experts", -1, "experts=-1 must be"), ("experts", "8", "experts='8'"),
    ("meta", [1], "meta must be a dict of plain values, not list"),
    ("meta", {"a": {1}}, r"meta\['a'\] cannot be written as JSON: no JSON for set"),
    ("meta", {"a": np.nan}, r"meta\['a'\] cannot be written as JSON"), ("meta", {"b": {(1, 2): 3}}, r"meta\['b'\]"),
    ("meta", {"a": b"x"}, "no JSON for bytes")])
def test_what_no_trace_can_hold_is_refused(field: str, value: object, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        Trace(**{"ids": np.array([[[0, 1]]]), "experts": 3, field: value})


def test_numbers_of_any_type_are_taken_where_they_fit() -> None:
    meta = {"n": np.int64(3), "x": np.float32(0.5), "on": np.True_, "layers": np.arange(2), "at": Path("m")}
    trace = Trace(ids=np.array([[[0, 1]]], np.uint8), weights=np.array([[[1, 0]]]), phase=np.array([1], np.uint64),
                  experts=np.int16(3), tokens=np.array([7], np.uint8), logits=np.array([[[-np.inf, 1e-9, 65504]]]),
                  meta=meta)
    assert (trace.ids.dtype, trace.weights.dtype, trace.phase.dtype) == (np.int32, np.float32, np.uint8)
    assert (trace.tokens.dtype, trace.logits.dtype, type(trace.experts)) == (np.int64, np.float16, int)
    assert trace.logits.tolist() == [[[-np.inf, 0, 65504]]]         # a masked expert, and rounding
    assert trace.meta == {"n": 3, "x": 0.5, "on": True, "layers": [0, 1], "at": "m"}
