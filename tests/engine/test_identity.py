"""Two engines of one identity measure the same: it holds all that steers a figure, and nothing that only costs time."""

from __future__ import annotations

import shutil

import pytest
import torch

import moe_lab as ml
from moe_lab.engine.identity import identity


@pytest.fixture
def opened(checkpoint):
    """Engines by what they are loaded with."""
    engines = []

    def load(folder=None, **options):
        engines.append(ml.load(str(folder or checkpoint("olmoe")), **{"cache": 4, **options}))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


def test_place_cache_disk_policies_and_threads_do_not_count(opened, checkpoint, tmp_path):
    first = identity(opened())
    shutil.copytree(checkpoint("olmoe"), tmp_path / "copy")
    other = opened(tmp_path / "copy", cache=8, routing="cache-prior", eviction="lfu", disk=ml.Disk("50 MB/s"))
    torch.set_num_threads(2)
    list(other.stream([1, 2, 3], max_new_tokens=2))
    assert identity(other) == first and not first.strange


@pytest.mark.parametrize(("options", "part"), [
    (dict(weights="bf16"), "a setting"), (dict(dense="bf16"), "a setting"), (dict(seed=5), "a setting"),
    (dict(weights="q4", dense="f32"), "a setting"), (dict(dense="q8"), "the model in memory"),
])
def test_formats_and_seed_count(opened, options, part):
    apart = identity(opened()).apart(identity(opened(**options)))
    assert any(words.startswith(part) for words in apart)


def test_another_seed_of_the_same_engine_counts(opened):
    engine = opened()
    before = identity(engine)
    engine.seed = 3
    assert identity(engine).apart(before) == ["a setting (formats, seed or the router's rules)"]


def test_other_experts_count_and_are_left_out_where_files_are(opened, checkpoint, tmp_path):
    first = opened()
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "copy")
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[first._core.experts.readers.store.plan.offset[1, 3, 0] + 2] ^= 1         # a bit of one weight of one expert
    weights.write_bytes(raw)
    other = opened(folder)
    assert identity(other).apart(identity(first)) == ["the weight files"]
    assert identity(other, files=False) == identity(first, files=False)


@pytest.mark.parametrize(("switch", "back"), [
    (lambda: torch.set_float32_matmul_precision("medium"), lambda: torch.set_float32_matmul_precision("highest")),
    (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
    (lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)),
    (lambda: torch.backends.cuda.enable_flash_sdp(False), lambda: torch.backends.cuda.enable_flash_sdp(True)),
    (lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False)),
])
def test_switches_of_torch_count(opened, switch, back):
    engine = opened()
    before = identity(engine)
    switch()
    try:
        (words,) = identity(engine).apart(before)
    finally:
        back()
    assert words.startswith("torch's switches") and identity(engine) == before


def test_autocast_counts(opened):
    engine = opened()
    before = identity(engine)
    with torch.autocast("cpu"):
        assert "autocast torch.bfloat16" in identity(engine).apart(before)[0]


def test_another_path_of_the_kernels_counts(opened, monkeypatch):
    engine = opened()
    before = identity(engine)
    monkeypatch.setenv("MOE_LAB_KERNELS", "portable")
    (words,) = identity(engine).apart(before)
    assert words.startswith("the libraries or the processor") and "portable" in words


def test_experts_computed_by_something_else_are_strange(opened):
    engine = opened()
    engine.hf.moe_lab_socket.handler = object()
    assert identity(engine).strange == "its experts are computed by another handler, object"
