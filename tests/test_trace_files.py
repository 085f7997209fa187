"""Files of traces: written whole or not at all, refused whole where they are cut, in range or not read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from layers import TRACES, random_ids

from moe_lab.errors import TraceError
from moe_lab.trace import Trace
from moe_lab.trace_files import READERS, WRITERS, route_csv
from moe_lab.trace_files.whole import whole

SUFFIXES = [".npz", ".jsonl", ".csv", ".parquet"]


def some(rng: np.random.Generator, T: int = 12, logits: bool = False, **more: object) -> Trace:
    ids = np.stack([random_ids(rng, T, 3, 10) for _ in range(2)], axis=1)
    z = rng.standard_normal((T, 2, 16)) if logits else None
    return Trace(ids=ids, weights=rng.random(ids.shape), experts=16, logits=z, **more)


def same(a: Trace, b: Trace) -> bool:
    arrays = [(getattr(a, name), getattr(b, name)) for name in ("ids", "weights", "phase", "tokens", "logits")]
    return (a.experts, dict(a.meta)) == (b.experts, dict(b.meta)) and all(
        (x is None and y is None) or np.array_equal(x, y) for x, y in arrays)


def needs(suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")


def test_every_suffix_is_read_and_written() -> None:
    assert list(READERS) == list(WRITERS) == SUFFIXES


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_router_logits_survive_the_formats_that_hold_everything(suffix: str, tmp_path: Path,
                                                                rng: np.random.Generator) -> None:
    needs(suffix)
    trace = some(rng, logits=True)
    trace.write(tmp_path / f"a{suffix}")
    assert same(Trace.read(tmp_path / f"a{suffix}"), trace)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_trace_of_no_tokens_survives_too(suffix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    needs(suffix)
    empty = some(rng).prefill
    empty.write(tmp_path / f"a{suffix}")
    assert same(Trace.read(tmp_path / f"a{suffix}"), empty)
    assert Trace.read(tmp_path / f"a{suffix}").ids.shape == (0, 2, 3)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_weights_survive_to_the_last_bit(suffix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    trace = some(rng)
    tiny = np.where(rng.random(trace.ids.shape) < 0.3, np.float32(1e-42), trace.weights)       # subnormals too
    trace = Trace(ids=trace.ids, weights=np.nextafter(tiny, np.float32(1)), experts=16)
    trace.write(tmp_path / f"a{suffix}")
    assert Trace.read(tmp_path / f"a{suffix}").weights.tobytes() == trace.weights.tobytes()


def test_turns_and_the_numbers_of_layers_survive_a_csv(tmp_path: Path, rng: np.random.Generator) -> None:
    """Prompt, answer, prompt, answer: a file sorted by turn and phase must come back in the order it went."""
    trace = some(rng, phase=np.array([0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1]), meta={"layers": [1, 3], "words": "a b = c"})
    trace.write(tmp_path / "a.csv")
    assert same(Trace.read(tmp_path / "a.csv"), trace)
    rows = [line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines() if line[0].isdigit()]
    assert {row[3] for row in rows} == {"1", "3"} and {row[0] for row in rows} == {"0", "1", "2"}


@pytest.mark.skipif(not TRACES.is_dir(), reason=f"no recorded traces in {TRACES}")
@pytest.mark.parametrize("name", ["olmoe-299.jsonl", "qwen3-30b-a3b.route.csv"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_recorded_trace_survives_every_format(name: str, suffix: str, tmp_path: Path) -> None:
    needs(suffix)
    trace = Trace.read(TRACES / name)
    trace.write(tmp_path / f"again{suffix}")
    again = Trace.read(tmp_path / f"again{suffix}")
    assert same(again, trace) and again.digest() == trace.digest()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_cut_anywhere_is_refused_whole(suffix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    needs(suffix)
    some(rng, T=30).write(tmp_path / f"a{suffix}")
    data = (tmp_path / f"a{suffix}").read_bytes()
    ends = [i + 1 for i, byte in enumerate(data[:-1]) if byte == 10] if suffix in (".jsonl", ".csv") else []
    cuts = {*ends[:: max(1, len(ends) // 12)], *range(1, len(data) - 2, len(data) // 12)}
    for cut in sorted(cuts):
        (tmp_path / f"b{suffix}").write_bytes(data[:cut])
        with pytest.raises(TraceError, match=rf"b\{suffix}"):
            Trace.read(tmp_path / f"b{suffix}")


@pytest.mark.parametrize(("suffix", "said"), [(".jsonl", "read to line 11: expected 12 tokens, as the first line says"),
                                              (".csv", "read to line 75: expected 72 rows, as the header says")])
def test_a_file_cut_between_two_lines_says_how_much_is_missing(suffix: str, said: str, tmp_path: Path,
                                                              rng: np.random.Generator) -> None:
    some(rng).write(tmp_path / f"a{suffix}")
    lines = (tmp_path / f"a{suffix}").read_text().splitlines(keepends=True)
    (tmp_path / f"b{suffix}").write_text("".join(lines[:-1]))
    with pytest.raises(TraceError, match=said):
        Trace.read(tmp_path / f"b{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_write_that_fails_leaves_the_file_that_was_there(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           rng: np.random.Generator) -> None:
    needs(suffix)
    first, second = some(rng), some(rng)
    path = tmp_path / f"a{suffix}"
    first.write(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(TraceError, match="cannot be written: No space left"):
        second.write(path)
    monkeypatch.undo()
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert same(Trace.read(path), first)


def test_a_file_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with whole(tmp_path / "a.txt") as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_meta_that_became_no_json_is_refused_before_a_byte_is_written(suffix: str, tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch,
                                                                        rng: np.random.Generator) -> None:
    needs(suffix)
    trace = some(rng)
    trace.meta["late"] = object()
    monkeypatch.setattr("moe_lab.trace_files.whole.open", None, raising=False)
    with pytest.raises(TraceError, match=r"meta\['late'\] cannot be written as JSON: no JSON for object"):
        trace.write(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_is_not_there_is_named(suffix: str, tmp_path: Path, rng: np.random.Generator) -> None:
    needs(suffix)
    with pytest.raises(TraceError, match="cannot be written: No such file or directory"):
        some(rng).write(tmp_path / "none" / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_what_a_text_file_has_no_line_for_is_refused(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"write \.npz"):
        Trace(ids=np.zeros((0, 1, 2), np.int32), experts=4).write(tmp_path / f"a{suffix}")
    if suffix == ".csv":
        with pytest.raises(TraceError, match=r"token 1 uses none; write \.npz"):
            Trace(ids=np.array([[[0, 1]], [[-1, -1]]]), experts=4).write(tmp_path / "a.csv")
        with pytest.raises(TraceError, match=r"layer 1 uses none; write \.npz"):
            Trace(ids=np.array([[[0, 1], [-1, -1]]]), experts=4).write(tmp_path / "a.csv")
    assert not list(tmp_path.iterdir())


# --- JSON lines and CSV ----------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "said"), [
    ({"experts": "8"}, "line 1: expected 'experts', a whole number from 0, found '8'"),
    ({"K": -1}, "line 1: expected 'K', a whole number"), ({"tokens": True}, "line 1: expected 'tokens'"),
    ({"meta": [1]}, "line 1: expected 'meta', an object"), ({"experts": 3}, "line 1: expert 3 is out of range"),
    ({"phase": True}, "line 1: expected 'phase' 0 or 1")])
def test_the_first_line_of_a_jsonl_is_checked_too(change: dict, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"layers": [[0, 3]], **change}) + "\n")
    with pytest.raises(TraceError, match=said):
        Trace.read(tmp_path / "a.jsonl")


HEAD = "# route_trace v1\n# n_expert=8\nturn,phase,step,layer,slot,expert,token\n"


@pytest.mark.parametrize(("text", "said"), [
    (HEAD + "0,1,0,0,0,8,5\n", "line 4: expert 8 is out of range, ids go from 0 to 7"),
    (HEAD + "0,1,0,0,0,1,5\n0,1,0,0,1,2,6\n", "line 5: expected token 5, as before for turn 0, step 0, found 6"),
    (HEAD + "0,1,0,0,0,1,x\n", "line 4: expected whole numbers"),
    (HEAD + "0,1,0,0,0,1_0,5\n", "line 4: expected whole numbers"),
    (HEAD + "\n", "line 3: expected rows of turn"),
    (f"{route_csv._META}{{\n" + HEAD, "line 1: expected JSON after '# meta'")])
def test_a_malformed_csv_is_refused_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(TraceError, match=said):
        Trace.read(tmp_path / "a.csv")


# --- Parquet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [Trace.read, some(np.random.default_rng(0)).write])
def test_without_pyarrow_the_extra_is_named(asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TraceError, match=r"pip install 'moe-lab\[parquet\]'"):
        asked(tmp_path / "a.parquet")


def test_a_parquet_file_of_pandas_is_read_in_any_order(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pandas as pd

    frame = pd.DataFrame({"step": [1, 0, 0, 1], "layer": [0, 1, 0, 1], "phase": [1, 0, 0, 1],
                          "experts": [[4, 5], [2, 3], [0, 1], [6, 7]]})
    frame.to_parquet(tmp_path / "a.parquet")
    trace = Trace.read(tmp_path / "a.parquet")
    assert trace.ids.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert (trace.phase.tolist(), trace.experts, trace.weights) == ([0, 1], 8, None)


@pytest.mark.parametrize(("change", "said"), [
    ({"experts": None}, "there is no experts among step, layer, phase"),
    ({"experts": [[0, 1], [2]]}, "row 1: expected 2 numbers in 'experts', as in the first row, found 1"),
    ({"experts": [[0.5, 1.0], [2.0, 3.0]]}, "expected a list of whole numbers in every row of the column 'experts'"),
    ({"experts": [0, 1]}, "expected a list of whole numbers"), ({"experts": [[0, -2], [1, 2]]}, "expert ids are whole"),
    ({"experts": [[0, 2**40], [1, 2]]}, "expert ids are whole"),
    ({"experts": [[0, 9], [1, 2]]}, "expert 9 is out of range"),
    ({"step": [0, 0]}, "expected 1 rows, one for each of 1 tokens and 1 layers, found 2, 1 of them different"),
    ({"step": [0, 2]}, "expected 3 rows"), ({"layer": [0, -1]}, "row 1: expected layer from 0, found -1"),
    ({"phase": [0.5, 1.0]}, "expected whole numbers in the column 'phase'"), ({"phase": [0, 7]}, "phase is 0")])
def test_a_parquet_file_that_is_no_trace_is_refused(change: dict, said: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pandas as pd

    columns = {"step": [0, 1], "layer": [0, 0], "phase": [0, 1], "experts": [[0, 1], [2, 3]], **change}
    pd.DataFrame({k: v for k, v in columns.items() if v is not None}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(TraceError, match=said):
        Trace.read(tmp_path / "a.parquet", experts=8)
