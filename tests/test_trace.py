"""Traces: read whole or not at all, written so that they read back equal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from layers import TRACES, random_ids

from moe_lab.errors import TraceError
from moe_lab.trace import Trace


def some(rng: np.random.Generator, T: int = 12, weights: bool = True, missing: float = 0.0) -> Trace:
    ids = np.stack([random_ids(rng, T, 3, 10, missing) for _ in range(2)], axis=1)
    gates = np.where(ids >= 0, rng.random(ids.shape), 0).astype(np.float32) if weights else None
    phase = np.array([0] * 4 + [1] * (T - 4), dtype=np.uint8)
    tokens, meta = np.arange(T) + 100, {"model": "a", "n": 3}
    return Trace(ids=ids, weights=gates, phase=phase, experts=16, tokens=tokens, meta=meta)


def equal(a: Trace, b: Trace) -> bool:
    pairs = ((a.ids, b.ids), (a.weights, b.weights), (a.phase, b.phase), (a.tokens, b.tokens))
    same = all((x is None and y is None) or np.array_equal(x, y) for x, y in pairs)
    return same and (a.experts, dict(a.meta)) == (b.experts, dict(b.meta))


# --- the record ------------------------------------------------------------------------------------


def test_a_trace_knows_its_sizes(rng: np.random.Generator) -> None:
    trace = some(rng)
    assert (len(trace), trace.L, trace.K, trace.experts, trace.uses) == (12, 2, 3, 16, 72)
    assert repr(trace) == "Trace: 12 tokens (4 prefill, 8 decode), 2 layers x 16 experts, top-3, with weights"


def test_without_a_number_of_experts_it_is_the_largest_id_plus_one_and_the_repr_says_so() -> None:
    trace = Trace(ids=np.array([[[0, 6]]]))
    assert trace.experts == 7
    assert "7 experts (the largest id + 1)" in repr(trace)


def test_a_trace_is_cut_by_phase(rng: np.random.Generator) -> None:
    trace = some(rng)
    assert (len(trace.prefill), len(trace.decode)) == (4, 8)
    np.testing.assert_array_equal(trace.decode.ids, trace.ids[4:])
    np.testing.assert_array_equal(trace.decode.weights, trace.weights[4:])
    np.testing.assert_array_equal(trace.decode.tokens, trace.tokens[4:])
    assert trace.decode.experts == 16
    assert len(trace.prefill.decode) == 0


def test_a_trace_is_frozen(rng: np.random.Generator) -> None:
    trace = some(rng)
    with pytest.raises(AttributeError):
        trace.experts = 3
    with pytest.raises(ValueError, match="read-only"):
        trace.ids[0, 0, 0] = 1


def test_a_trace_keeps_its_own_copy() -> None:
    ids = np.array([[[0, 1]]], dtype=np.int32)
    trace = Trace(ids=ids)
    ids[0, 0, 0] = 5
    assert trace.ids[0, 0, 0] == 0


def test_the_digest_is_a_hash_over_the_layers_hashes(rng: np.random.Generator) -> None:
    trace = some(rng)
    layers = [hashlib.blake2b(digest_size=16) for _ in range(2)]
    for token in trace.ids:                 # as an engine does, token by token
        for layer, ids in zip(layers, token, strict=True):
            layer.update(ids.astype("<i4").tobytes())
    whole = hashlib.blake2b(b"".join(layer.digest() for layer in layers), digest_size=16)
    assert trace.digest() == whole.hexdigest()
    other = trace.ids.copy()
    other[5, 1] = other[5, 1, ::-1]
    assert Trace(ids=other, experts=16).digest() != trace.digest()


@pytest.mark.parametrize(("ids", "said"), [
    ([[[0, 9]]], "token 0, layer 0: expert 9 is out of range, ids go from 0 to 7"),
    ([[[0, 1]], [[-2, 1]]], "token 1, layer 0: expert -2 is out of range"),
    ([[[0, 1]], [[3, 3]]], "token 1, layer 0: expert 3 twice"),
    ([[0, 1]], r"ids must be \(tokens, layers, K\)")])
def test_ids_that_cannot_be_are_refused(ids: list, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        Trace(ids=np.array(ids), experts=8)


def test_unused_places_may_repeat() -> None:
    assert Trace(ids=np.array([[[0, -1, -1]]]), experts=8).uses == 1


def test_arrays_of_another_size_are_refused() -> None:
    ids = np.array([[[0, 1]]])
    with pytest.raises(TraceError, match="weights must be"):
        Trace(ids=ids, weights=np.ones((1, 1, 3)), experts=8)
    with pytest.raises(TraceError, match="phase must be"):
        Trace(ids=ids, phase=np.ones(2), experts=8)
    with pytest.raises(TraceError, match="phase is 0"):
        Trace(ids=ids, phase=np.array([2]), experts=8)


def test_a_trace_is_cut_by_a_slice_or_a_mask(rng: np.random.Generator) -> None:
    trace = some(rng)
    part = trace[2:7]
    assert (len(part), part.experts, dict(part.meta)) == (5, 16, dict(trace.meta))
    for name in ("ids", "weights", "phase", "tokens"):
        np.testing.assert_array_equal(getattr(part, name), getattr(trace, name)[2:7])
    assert equal(trace[trace.phase == 0], trace.prefill)
    with pytest.raises(TraceError, match=r"trace\[3\]: .* one token is trace\[5:6\]"):
        trace[3]
    for which in (np.ones(5, np.bool_), np.array([12]), np.array([0.5]), slice("a", None)):
        with pytest.raises(TraceError, match="does not fit 12 tokens"):
            trace[which]


def test_marks_find_the_tokens_that_two_traces_share(rng: np.random.Generator) -> None:
    trace = some(rng, T=60)
    assert len(trace.marks()) == 53 and len(np.unique(trace.marks())) == 53 and not len(trace[:7].marks())
    middle = Trace(ids=trace.ids[20:40, :, ::-1])       # another order of experts, another guess of how many there are
    assert np.isin(trace.marks(), middle.marks()).nonzero()[0].tolist() == list(range(20, 33))
    assert not np.isin(trace.marks(), some(rng, T=60).marks()).any()


# --- files of our own ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_what_is_written_reads_back_equal(suffix: str, weights: bool, missing: float, tmp_path: Path,
                                          rng: np.random.Generator) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    ids = some(rng, weights=weights, missing=missing)
    # .jsonl and .csv leave unused places out, so they come back behind the used ones
    trace = Trace(ids=np.take_along_axis(ids.ids, order := np.argsort(ids.ids < 0, axis=2, kind="stable"), 2),
                  weights=None if ids.weights is None else np.take_along_axis(ids.weights, order, 2), phase=ids.phase,
                  experts=16, tokens=ids.tokens, meta=ids.meta)
    trace.write(tmp_path / f"mine{suffix}")
    assert equal(Trace.read(tmp_path / f"mine{suffix}"), trace)


def test_a_trace_of_no_tokens_survives_an_npz(tmp_path: Path, rng: np.random.Generator) -> None:
    empty = some(rng).prefill.decode
    empty.write(tmp_path / "empty.npz")
    assert equal(Trace.read(tmp_path / "empty.npz"), empty)


def test_other_formats_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(TraceError, match=r"written as \.npz, \.jsonl, \.csv, \.parquet, not '\.txt'"):
        some(rng).write(tmp_path / "a.txt")
    with pytest.raises(TraceError, match=r"a trace is \.npz, \.jsonl, \.csv, \.parquet, not '\.txt'"):
        Trace.read(tmp_path / "a.txt")
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        Trace.read(tmp_path / "a.npz")


def test_a_truncated_npz_is_refused_whole(tmp_path: Path, rng: np.random.Generator) -> None:
    some(rng, T=300).write(tmp_path / "a.npz")
    data = (tmp_path / "a.npz").read_bytes()
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0xFF
    for part in (b"", data[:10], data[: len(data) // 2], data[:-10], bytes(damaged)):
        (tmp_path / "b.npz").write_bytes(part)
        with pytest.raises(TraceError, match=r"b\.npz is not a whole \.npz"):
            Trace.read(tmp_path / "b.npz")


def test_an_npz_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ids=np.array([{"a": 1}], dtype=object))
    with pytest.raises(TraceError, match="plain arrays"):
        Trace.read(tmp_path / "a.npz")


def test_an_npz_of_something_else_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", numbers=np.arange(3))
    with pytest.raises(TraceError, match="expected an array 'ids' of whole numbers, found numbers"):
        Trace.read(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", ids=np.zeros((1, 1, 1)))
    with pytest.raises(TraceError, match="whole numbers"):
        Trace.read(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", ids=np.array([[[9]]]), experts=np.int64(4))
    with pytest.raises(TraceError, match=r"a\.npz: token 0, layer 0: expert 9 is out of range"):
        Trace.read(tmp_path / "a.npz")


# --- JSON lines ------------------------------------------------------------------------------------

ROWS = [{"tok": 1, "layers": [[0, 3], [1, 2]]}, {"tok": 2, "layers": [[3, 4], [0, 1]]}]


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_json_lines_need_only_layers(tmp_path: Path) -> None:
    trace = Trace.read(jsonl(tmp_path / "a.jsonl", *ROWS, ""))
    assert trace.ids.tolist() == [[[0, 3], [1, 2]], [[3, 4], [0, 1]]]
    assert (trace.experts, trace.weights, len(trace.decode)) == (5, None, 2)
    assert Trace.read(tmp_path / "a.jsonl", experts=8).experts == 8


@pytest.mark.parametrize(("row", "said"), [
    ('{"tok": 3, "layers": [[0, 3], [1', "line 3: expected one whole JSON object"),
    ("[1, 2]", "line 3: expected an object with 'layers'"),
    ({"tok": 3}, "line 3: expected an object with 'layers'"),
    ({"layers": [[0, "1"], [1, 2]]}, "line 3: expected an object with 'layers', a list of lists of expert ids"),
    ({"layers": [[0, 1.5], [1, 2]]}, "line 3: expected an object with 'layers'"),
    ({"layers": [[0, True], [1, 2]]}, "line 3: expected an object with 'layers'"),
    ({"layers": [[0, 1]]}, "line 3: expected 2 layers, as on the first line, found 1"),
    ({"layers": [[0, -1], [1, 2]]}, "line 3: expert ids are whole numbers from 0"),
    ({"layers": [[0, 2**40], [1, 2]]}, "line 3: expert ids are whole numbers from 0"),
    ({"layers": [[0, 0], [1, 2]]}, "line 3: the experts of one layer must be distinct"),
    ({"layers": [[0, 1], [1, 2]], "phase": 7}, "line 3: expected 'phase' 0 or 1"),
])
def test_a_malformed_line_is_named(row: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=said):
        Trace.read(jsonl(tmp_path / "a.jsonl", *ROWS, row))


def test_weights_and_tokens_must_be_on_every_line(tmp_path: Path) -> None:
    full = {"layers": [[0, 1]], "weights": [[0.5, 0.25]], "token": 7}
    assert Trace.read(jsonl(tmp_path / "a.jsonl", full, full)).weights.tolist() == [[[0.5, 0.25]]] * 2
    with pytest.raises(TraceError, match="line 2: expected 'weights' with one number per expert"):
        Trace.read(jsonl(tmp_path / "a.jsonl", full, {**full, "weights": [[0.5]]}))
    with pytest.raises(TraceError, match="line 2: expected 'token'"):
        Trace.read(jsonl(tmp_path / "a.jsonl", full, {**full, "token": "x"}))


def test_an_empty_file_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="holds no token"):
        Trace.read(jsonl(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "a.jsonl").write_bytes(b'{"layers": [[0]]}\n\xff\xfe\x00')
    with pytest.raises(TraceError, match="line 2 is not text in UTF-8"):
        Trace.read(tmp_path / "a.jsonl")


def test_ids_out_of_the_range_asked_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"a\.jsonl, line 2: expert 4 is out of range, ids go from 0 to 3"):
        Trace.read(jsonl(tmp_path / "a.jsonl", *ROWS), experts=4)


# --- route_trace CSV -------------------------------------------------------------------------------

HEAD = "# route_trace v1\n# model=m n_layer=2 n_expert=8 n_expert_used=2\nturn,phase,step,layer,slot,expert,weight\n"
BODY = "0,0,0,0,0,3,0.5\n0,0,0,0,1,1,0.25\n0,1,1,0,0,2,0.5\n0,1,1,0,1,3,0.5\n0,1,1,1,0,7,0.75\n0,1,1,1,1,0,0.25\n"


def test_a_route_trace_is_grouped_by_step_layer_and_slot(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEAD + BODY)
    trace = Trace.read(tmp_path / "a.csv")
    assert trace.ids.tolist() == [[[3, 1], [-1, -1]], [[2, 3], [7, 0]]]
    assert trace.weights.tolist() == [[[0.5, 0.25], [0, 0]], [[0.5, 0.5], [0.75, 0.25]]]
    assert (trace.experts, trace.phase.tolist(), trace.meta["model"]) == (8, [0, 1], "m")


@pytest.mark.parametrize(("text", "said"), [
    (HEAD + BODY[:-9], "line 9: expected 7 columns .*, found"),
    (HEAD + BODY[:-17], "read to line 8: turn 0, step 1, layer 1 has slots .0., expected 0 to 1; is the file whole"),
    (HEAD + BODY + "0,1,x,0,0,1,0.5\n", "line 10: expected whole numbers"),
    (HEAD + BODY + "0,1,2,0,0,1,much\n", "line 10: expected whole numbers .* and a number for weight"),
    (HEAD + BODY + "0,3,2,0,0,1,0.5\n", "line 10: expected phase 0 or 1"),
    (HEAD + BODY + "0,1,1,1,1,5,0.5\n", "line 10: slot 1 or expert 5 is there twice"),
    (HEAD + BODY.replace("7,0.75", "8,0.75"), "line 8: expert 8 is out of range, ids go from 0 to 7"),
    (HEAD.replace("slot,", "") + BODY, "line 3: expected a line of column names with slot"),
    (HEAD, "line 3: expected rows of turn"),
    ("", "line 0: expected rows")])
def test_a_malformed_route_trace_is_refused_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(TraceError, match=said) as caught:
        Trace.read(tmp_path / "a.csv")
    assert "a.csv" in str(caught.value)


# --- real ones -------------------------------------------------------------------------------------


@pytest.mark.skipif(not TRACES.is_dir(), reason=f"no recorded traces in {TRACES}")
def test_the_recorded_traces_read_as_they_are_described() -> None:
    olmoe = Trace.read(TRACES / "olmoe-299.jsonl")
    assert (len(olmoe), olmoe.L, olmoe.K, olmoe.experts) == (299, 16, 8, 64)
    qwen = Trace.read(TRACES / "qwen3-30b-a3b.route.csv")
    assert (len(qwen.decode), qwen.L, qwen.K, qwen.experts) == (128, 48, 6, 128)
    assert len(qwen.prefill) == 28
    assert (qwen.decode.ids >= 0).all()


@pytest.mark.skipif(not TRACES.is_dir(), reason=f"no recorded traces in {TRACES}")
@pytest.mark.parametrize("name", ["olmoe-299.jsonl", "qwen3-30b-a3b.route.csv"])
def test_a_recorded_trace_that_ends_in_the_middle_is_refused(name: str, tmp_path: Path) -> None:
    data = (TRACES / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2 + 3])
    with pytest.raises(TraceError, match=r"line \d+"):
        Trace.read(tmp_path / name)
