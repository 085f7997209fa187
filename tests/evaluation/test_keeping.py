"""Kept results are those of this engine, text and policies, or none are kept; and one sweep is of one model."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from checkpoints import make

import moe_lab as ml
from moe_lab.engine import passes as passing
from moe_lab.errors import ReadError, SettingError
from moe_lab.store.content import Stamp

WINDOW = 20
ROUTING = ["original", "cache-prior"]


@pytest.fixture
def ids(rng):
    return rng.integers(0, 160, 3 * WINDOW + 1).tolist()


@pytest.fixture
def passes(monkeypatch):
    """Counts the forward passes of engines."""
    counted, one_pass = [], passing.one_pass
    monkeypatch.setattr(passing, "one_pass", lambda *args: counted.append(1) or one_pass(*args))
    return counted


def swept(engine, ids, store, routing=ROUTING, **options):
    """The frame of a small sweep."""
    return ml.sweep(engine, ids, routing=routing, cache=3, window=WINDOW, store=store, **options).to_frame()


# --- what is told apart -----------------------------------------------------------------------------


def test_two_formats_of_the_dense_part_share_a_store_and_no_figure(checkpoint, ids, tmp_path):
    for dense in ("bf16", "q4"):
        engine = ml.load(str(checkpoint("olmoe", dtype=torch.bfloat16)), cache=4, weights="bf16", dense=dense)
        assert swept(engine, ids, tmp_path).equals(swept(engine, ids, False))
        engine.close()


def test_weights_changed_in_memory_are_measured_anew_and_the_old_ones_found_again(engine, ids, passes, tmp_path):
    before = swept(engine, ids, tmp_path)
    with torch.no_grad():
        engine.hf.model.layers[0].mlp.gate.weight.mul_(-1)
    changed = swept(engine, ids, tmp_path)
    assert changed.equals(swept(engine, ids, False)) and not changed.equals(before)
    with torch.no_grad():
        engine.hf.model.layers[0].mlp.gate.weight.mul_(-1)
    passes.clear()
    assert swept(engine, ids, tmp_path).equals(before) and not passes


def test_a_copied_checkpoint_finds_its_results_again(engine, checkpoint, ids, passes, tmp_path):
    before = swept(engine, ids, tmp_path / "store")
    shutil.copytree(checkpoint("olmoe"), tmp_path / "copy")
    copy = ml.load(str(tmp_path / "copy"), cache=8, disk=ml.Disk("50 MB/s"))
    passes.clear()
    assert swept(copy, ids, tmp_path / "store").equals(before) and not passes
    copy.close()


def test_a_file_edited_in_place_with_its_time_put_back_is_measured_anew(checkpoint, ids, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "model")
    weights, frames = folder / "model.safetensors", []
    other = make(tmp_path / "other", "olmoe", seed=1) / "model.safetensors"
    for change in (b"", other.read_bytes()):
        if change:
            times, before = os.stat(weights), Stamp.of(weights)
            while Stamp.of(weights) == before:
                weights.write_bytes(change)
                os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
        engine = ml.load(str(folder), cache=4)
        frames.append(swept(engine, ids, tmp_path / "store"))
        assert frames[-1].equals(swept(engine, ids, False))
        engine.close()
    assert not frames[0].equals(frames[1])


# --- what is not kept -------------------------------------------------------------------------------


def test_of_a_model_with_a_hook_nothing_is_kept_and_nothing_found(engine, ids, tmp_path, capsys):
    plain = swept(engine, ids, tmp_path)
    files = set(tmp_path.rglob("*"))
    hook = engine.hf.model.layers[1].register_forward_hook(lambda module, args, out: out * 1.5)
    assert not swept(engine, ids, tmp_path).equals(plain) and set(tmp_path.rglob("*")) == files
    said = capsys.readouterr().err
    assert said.count("moe_lab: results are not kept: model.layers.1 has the hook") == 1 == said.count("\n")
    hook.remove()
    assert swept(engine, ids, tmp_path).equals(plain)
    assert not capsys.readouterr().err


def test_of_a_policy_that_has_no_digest_nothing_is_kept_and_the_rest_is(engine, ids, tmp_path, capsys):
    thing = object()

    class Mine(ml.routing.MaxRank):
        def vector(self):
            return super().vector() if thing else None

    both = swept(engine, ids, tmp_path, routing=["original", Mine])
    assert len(both) == 2 and len(list(tmp_path.rglob("*.json"))) == 2      # the original's reference and point
    assert capsys.readouterr().err.count("moe_lab: results are not kept: 'mine': ") == 1


def test_where_nothing_is_to_be_kept_nothing_is_said_of_it(engine, ids, capsys):
    engine.hf.lm_head.register_forward_hook(lambda module, args, out: out)
    swept(engine, ids, False)
    assert not capsys.readouterr().err


def test_sources_that_changed_while_the_program_runs_cost_the_keeping(engine, ids, tmp_path, capsys, monkeypatch):
    from moe_lab.evaluation import keeping

    monkeypatch.setattr(keeping, "changed", lambda: "walk.py")
    swept(engine, ids, tmp_path)
    assert not list(tmp_path.rglob("*.json")) and "walk.py was changed after this program" in capsys.readouterr().err


# --- one sweep, one model ---------------------------------------------------------------------------


def test_a_model_changed_in_the_middle_of_a_sweep_is_refused_before_its_figures_count(engine, ids, tmp_path):
    sweep = ml.sweep(engine, ids, routing=["original", "cache-prior", "max-rank"], cache=3, window=WINDOW,
                     store=tmp_path)
    points = iter(sweep)
    next(points), next(points)
    files = set(tmp_path.rglob("*.*"))
    engine.hf.model.norm.weight.data[0] += 1
    with pytest.raises(SettingError, match=r"changed since this sweep was made: the model in memory .*ml.sweep\("):
        next(points)
    assert len(sweep.points) == 2 and set(tmp_path.rglob("*.*")) == files
    with pytest.raises(SettingError, match="changed since this sweep was made"):
        sweep.finish()
    engine.hf.model.norm.weight.data[0] -= 1


def test_a_seed_or_a_switch_of_torch_changed_before_a_sweep_begins_is_refused_too(engine, ids):
    sweep = ml.sweep(engine, ids, cache=3, window=WINDOW, store=False)
    engine.seed = 9
    with pytest.raises(SettingError, match="a setting"):
        sweep.finish()
    engine.seed = 0
    assert len(sweep.finish().points) == 2
    engine.seed = 9
    assert len(sweep.to_frame()) == 2           # all is measured: it may be asked for what was found


def test_a_model_is_measured_as_it_was_loaded_or_not_at_all_when_its_file_is_saved_over(checkpoint, ids, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "model")
    weights, other = folder / "model.safetensors", make(tmp_path / "other", "olmoe", seed=1) / "model.safetensors"
    replaced = ml.load(str(folder), cache=4)
    before = swept(replaced, ids, tmp_path / "store")
    os.replace(shutil.copy(other, folder / "new"), weights)
    assert swept(replaced, ids, tmp_path / "store").equals(before)
    rewritten = ml.load(str(folder), cache="100%")
    os.truncate(weights, os.stat(weights).st_size - 1)
    with pytest.raises(ReadError, match=r"model\.safetensors: the file was changed in place"):
        ml.sweep(rewritten, ids, window=WINDOW, store=tmp_path / "store")


# --- files that are not as they were kept -----------------------------------------------------------


def tampered(path, change):
    """The record in a file, changed, with a check that fits: as if it had been kept so."""
    from moe_lab.evaluation.results import Results

    record = json.loads(path.read_text())
    record.pop("check")
    change(record)
    Results(path.parent.parent).put(path.stem, record)


CHANGES = {
    "text for numbers": lambda r: r.update(losses=[str(x) for x in r["losses"]]),
    "NaN": lambda r: r["losses"].__setitem__(0, float("nan")),
    "booleans": lambda r: r.update(same=[True] * len(r["same"])),
    "a row too short": lambda r: r["kl"].pop(),
    "other windows": lambda r: r.update(tokens=[n + 1 for n in r["tokens"]]),
    "no losses": lambda r: r.pop("losses"),
    "a number for a row": lambda r: r.update(losses=3.0),
    "no digest": lambda r: r.update(digest=None),
    "time as text": lambda r: r.update(elapsed_s="1 s"),
    "made by nobody": lambda r: r.update(made=[]),
}
LAYERS = {
    "no layers": lambda r: r.update(layers=None),
    "a count missing": lambda r: r["layers"].pop("misses"),
    "too few layers": lambda r: [row.pop() for row in r["layers"].values()],
    "counts as text": lambda r: r["layers"].update(uses=["1", "2", "3"]),
}


@pytest.mark.parametrize("change", {**CHANGES, **LAYERS}.values(), ids={**CHANGES, **LAYERS})
def test_a_record_of_another_form_is_measured_again(engine, ids, tmp_path, change):
    first = swept(engine, ids, tmp_path)
    for path in tmp_path.rglob("*.json"):
        if change in CHANGES.values() or "layers" in json.loads(path.read_text()):
            tampered(path, change)
    assert swept(engine, ids, tmp_path).equals(first)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"3", b'"text"', b"{}", b"\xff", b'{"check": 1}',
                                     b"[" * 9999])
def test_a_file_that_holds_something_else_is_measured_again(engine, ids, tmp_path, content):
    first = swept(engine, ids, tmp_path)
    for path in tmp_path.rglob("*.*"):
        path.write_bytes(content)
    assert swept(engine, ids, tmp_path).equals(first)


def test_a_figure_changed_in_a_file_and_a_file_under_anothers_name_are_not_believed(engine, ids, tmp_path):
    first = swept(engine, ids, tmp_path)
    one, *others = sorted(path for path in tmp_path.rglob("*.json") if "layers" in json.loads(path.read_text()))
    text = one.read_text()
    record = json.loads(text)
    one.write_text(text.replace(repr(record["losses"][0]), repr(record["losses"][0] + 1)))
    for other in others:
        other.write_text(text)
    assert swept(engine, ids, tmp_path).equals(first)


def test_a_trace_of_another_run_is_not_taken_for_the_reference(engine, ids, passes, tmp_path):
    first = swept(engine, ids, tmp_path)
    (path,) = tmp_path.rglob("*.npz")
    trace = ml.Trace.read(path)
    for other in (trace[:-1], ml.Trace(ids=trace.ids[::-1], weights=trace.weights, experts=8),
                  ml.Trace(ids=trace.ids, weights=trace.weights * 2, experts=8), ml.Trace(ids=trace.ids, experts=8)):
        other.write(path)
        passes.clear()
        assert swept(engine, ids, tmp_path).equals(first) and passes
