"""Headers from strangers: whole ones are read, everything else is refused by name before anything long is done."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.errors import CheckpointError
from moe_lab.models import describe, open_model
from moe_lab.store import WeightFiles, read_checkpoint, read_header


def read(path):
    return read_header(WeightFiles.open([path]))


def write(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def row(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_whole_header_tells_where_each_tensor_lies(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "b": row(8, 16, [2, 2], "BF16"), "a": row(0, 8, [2])}
    path = write(tmp_path / "a.safetensors", header, bytes(16))
    tensors = read(path)
    start = path.stat().st_size - 16
    assert {n: (t.dtype, t.shape, t.offset, t.nbytes) for n, t in tensors.items()} == {
        "a": ("F32", (2,), start, 8), "b": ("BF16", (2, 2), start + 8, 8),
    }


def test_our_reading_is_that_of_the_library(checkpoint):
    from safetensors import safe_open

    folder = checkpoint("qwen2-moe")
    tensors = read(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", "np") as file:
        assert set(tensors) == set(file.keys())
        for name in list(tensors)[::17]:
            t = tensors[name]
            raw = t.file.read_bytes()[t.offset : t.offset + t.nbytes]
            assert raw == file.get_tensor(name).tobytes()


DAMAGED = {
    "a longer shape than bytes": ({"a": row(0, 8, [3])}, "does not fill"),
    "an end before its begin": ({"a": row(8, 0, [2])}, "no sizes"),
    "a negative offset": ({"a": row(-8, 0, [2])}, "no sizes"),
    "a negative shape": ({"a": row(0, 8, [-2])}, "no sizes"),
    "a fractional shape": ({"a": row(0, 8, [2.0])}, "no sizes"),
    "a truth for a number": ({"a": row(0, 4, [True])}, "no sizes"),
    "overlapping tensors": ({"a": row(0, 8, [2]), "b": row(4, 8, [1])}, "overlaps"),
    "a gap": ({"a": row(0, 4, [1]), "b": row(6, 8, [1], "BF16")}, "gap"),
    "an unknown type": ({"a": row(0, 8, [2], "F99")}, "unknown type"),
    "a type that is no name": ({"a": row(0, 8, [2], ["F32"])}, "type"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, "no type, shape and offsets"),
    "three offsets": ({"a": row(0, 8, [2]) | {"data_offsets": [0, 4, 8]}}, "no type, shape and offsets"),
    "a tensor that is a number": ({"a": 5}, "no type, shape and offsets"),
    "a list": ([1, 2], "not a table"),
    "no JSON": (b"{nonsense", "damaged"),
    "no text": (b"\xff\xfe\x00\x01", "damaged"),
    "a thousand brackets": (b"[" * 100_000, "damaged"),
    "a huge shape": ({"a": row(0, 8, [2**62, 2**62])}, "does not fill"),
    "a shape without end": ({"a": row(0, 8, [10**9] * 100_000)}, "of shape"),
    "a number of too many digits": (b'{"a": {"dtype": "F32", "shape": [1' + b"0" * 5000 + b"]}}", "digits"),
    "a name twice": (b'{"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}, "a": {}}', "names 'a' twice"),
    "a shape twice": (b'{"a": {"dtype": "U8", "shape": [8], "shape": [4, 2], "data_offsets": [0, 8]}}',
                      "'a' names 'shape' twice"),
    "no number": (b'{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 8]}}', "NaN is no number of JSON"),
    "an infinite number": (b'{"__metadata__": {"x": Infinity}}', "Infinity is no number of JSON"),
    "another coding of letters": ('{"a": 5}'.encode("utf-16"), "damaged"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_header_is_refused(tmp_path, what):
    header, message = DAMAGED[what]
    path = write(tmp_path / "bad.safetensors", header, bytes(8))
    with pytest.raises(CheckpointError, match=f"bad.safetensors.*{message}"):
        read(path)


@pytest.mark.parametrize("metadata", [{"step": 7}, None, 5, [1, {"a": None}], {"format": "pt", "x": {"y": [True]}}, ""])
def test_what_stands_under_metadata_is_nobodys_business(checkpoint, tmp_path, metadata):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "odd")
    content = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = {**json.loads(content[8 : 8 + length]), "__metadata__": metadata}
    write(folder / "model.safetensors", header, content[8 + length :])
    assert open_model(folder).spec == dataclasses.replace(describe(checkpoint("olmoe")), name=str(folder))


def test_metadata_may_name_something_twice(tmp_path):
    assert read(write(tmp_path / "a.safetensors", b'{"__metadata__": {"x": "1", "x": "2"}}')) == {}


@pytest.mark.parametrize(("data", "message"), [
    (b"1234567", r"truncated: .*\(1 B missing\)"), (b"123456789", r"longer than its header says.*\(1 B too many\)"),
])
def test_a_file_of_another_length_than_its_header_says_is_refused(tmp_path, data, message):
    path = write(tmp_path / "bad.safetensors", {"a": row(0, 8, [2])}, data)
    with pytest.raises(CheckpointError, match=f"{message}.*fetch it again"):
        read(path)


@pytest.mark.parametrize("content", [
    b"", b"1234", struct.pack("<Q", 0), struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 10) + b"{}",
])
def test_a_file_without_a_whole_header_is_refused(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file, or is truncated"):
        read(path)


@given(st.binary(max_size=200))
def test_no_file_at_all_raises_anything_else(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("noise") / "noise.safetensors"
    path.write_bytes(struct.pack("<Q", max(2, len(content) - 3)) + content)
    with contextlib.suppress(CheckpointError):
        assert read(path) == {}                  # noise can be a whole header, of no tensor


@pytest.fixture
def sharded(checkpoint, tmp_path):
    return shutil.copytree(checkpoint("olmoe", shard="100KB"), tmp_path / "sharded")


def test_all_shards_of_an_index_are_read(sharded, checkpoint):
    whole, cut = read_checkpoint(checkpoint("olmoe")).tensors, read_checkpoint(sharded).tensors
    assert {n: (t.shape, t.nbytes) for n, t in whole.items()} == {n: (t.shape, t.nbytes) for n, t in cut.items()}


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[3]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of \d+ shards: {shard.name}"):
        open_model(sharded)


def test_the_last_shard_truncated_is_found_when_the_model_is_opened(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{shard.name} is truncated"):
        open_model(sharded)


def test_a_shard_of_another_checkpoint_is_found(sharded):
    shards = sorted(sharded.glob("*.safetensors"))
    shutil.copy(shards[0], shards[1])
    with pytest.raises(CheckpointError, match="not of one checkpoint"):
        read_checkpoint(sharded)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "model.bin"])
def test_an_index_may_not_point_outside_its_folder(sharded, shard):
    index = sharded / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"][next(iter(places["weight_map"]))] = shard
    index.write_text(json.dumps(places))
    with pytest.raises(CheckpointError, match="refused"):
        read_checkpoint(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 5}', '{"weight_map": {}}', "{"])
def test_an_index_that_is_none_is_refused(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        read_checkpoint(sharded)


def test_pickled_weights_are_refused_with_the_way_out(checkpoint, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    shutil.copy(checkpoint("olmoe") / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*run code.*save_pretrained"):
        open_model(tmp_path)


def test_a_folder_without_weights_says_what_it_lacks(checkpoint, tmp_path):
    shutil.copy(checkpoint("olmoe") / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        open_model(tmp_path)
