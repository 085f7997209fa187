"""The dense part, read by offset: in every family, tensor by tensor, what transformers itself loads."""

from __future__ import annotations

import gc
import json
import shutil
import struct
import weakref

import pytest
import torch
from checkpoints import FAMILIES, eager
from safetensors.torch import load_file, save_file

from moe_lab.errors import CheckpointError
from moe_lab.models import open_model
from moe_lab.models.dense import TYPES

QUERY = "model.layers.1.self_attn.q_proj.weight"


def state(hf):
    """Parameters and buffers that are no experts', by name."""
    tensors = {**dict(hf.named_parameters(remove_duplicate=False)), **dict(hf.named_buffers(remove_duplicate=False))}
    return {name: tensor for name, tensor in tensors.items() if ".experts." not in name}


def assert_same(mine, theirs):
    found, expected = state(mine), state(theirs)
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].dtype == expected[name].dtype, name
        assert torch.equal(found[name], expected[name]), name
    assert mine.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert mine.name_or_path == theirs.name_or_path
    assert mine.config.to_diff_dict() == theirs.config.to_diff_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["50GB", "100KB"])
@pytest.mark.parametrize("family", [*FAMILIES, "granite"])
def test_it_equals_what_transformers_loads(checkpoint, family, shard, dtype):
    folder = checkpoint(family, shard=shard, dtype=dtype)
    for loaded in (torch.float32, torch.bfloat16):
        assert_same(open_model(folder, loaded).hf, eager(folder, loaded))


def changed(checkpoint, tmp_path, family="olmoe", **tensors):
    """A copy of a checkpoint with other tensors; None takes one away."""
    folder = shutil.copytree(checkpoint(family), tmp_path / "changed")
    kept = {**load_file(folder / "model.safetensors"), **tensors}
    save_file({name: x for name, x in kept.items() if x is not None}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_of_any_type_become_what_transformers_makes_of_them(checkpoint, tmp_path, kind):
    x = load_file(checkpoint("olmoe") / "model.safetensors")[QUERY].mul(3).abs().to(TYPES[kind])
    folder = changed(checkpoint, tmp_path, **{QUERY: x})
    assert_same(open_model(folder, torch.float32).hf, eager(folder))


def test_complex_numbers_are_refused(checkpoint, tmp_path):
    x = load_file(checkpoint("olmoe") / "model.safetensors")[QUERY].to(torch.complex64)
    with pytest.raises(CheckpointError, match=f"{QUERY}.*C64.*a model holds"):
        open_model(changed(checkpoint, tmp_path, **{QUERY: x}))


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
def test_either_of_two_tied_tensors_is_enough(checkpoint, tmp_path, kept):
    x = load_file(checkpoint("olmoe-tied") / "model.safetensors")["model.embed_tokens.weight"]
    folder = changed(checkpoint, tmp_path, "olmoe-tied", **{"model.embed_tokens.weight": None, kept: x})
    model = open_model(folder)
    assert_same(model.hf, eager(folder))
    assert model.hf.lm_head.weight is model.hf.model.embed_tokens.weight


def test_tied_tensors_that_are_both_missing_are_named(checkpoint, tmp_path):
    folder = changed(checkpoint, tmp_path, "olmoe-tied", **{"model.embed_tokens.weight": None})
    with pytest.raises(CheckpointError, match=r"lacks 2 tensors.*lm_head\.weight, model\.embed_tokens\.weight"):
        open_model(folder)


def test_a_tensor_of_another_shape_is_refused_with_both_shapes_before_anything_is_read(checkpoint, tmp_path):
    folder = changed(checkpoint, tmp_path, **{QUERY: torch.zeros(64, 65)})
    with pytest.raises(CheckpointError, match=rf"{QUERY}.*\[64, 65\].*\[64, 64\].*do not belong together"):
        open_model(folder)


def test_a_tensor_that_no_part_of_the_model_wants_is_neither_read_nor_counted(checkpoint, tmp_path):
    extra = {"model.layers.3.mtp.weight": torch.zeros(1000, 64)}
    plain, more = open_model(checkpoint("olmoe")), open_model(changed(checkpoint, tmp_path, **extra))
    assert more.spec.dense_bytes == plain.spec.dense_bytes
    assert_same(more.hf, eager(tmp_path / "changed"))


def test_generation_settings_come_from_the_configuration_where_they_have_no_file(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 7, "top_k": 5}))
    (folder / "generation_config.json").unlink()
    hf = open_model(folder).hf
    assert_same(hf, eager(folder))
    assert hf.generation_config.eos_token_id == 7


@pytest.mark.parametrize("ends", ["2", 1.5, [[1]], ["2"], True, {}])
def test_an_end_that_is_no_token_id_is_refused(checkpoint, tmp_path, ends):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "odd")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json says eos_token_id"):
        open_model(folder)


def test_no_code_of_a_checkpoint_is_run(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "code")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n"
                                                            "def generate(model, **kwargs): pass\n")
    hf = open_model(folder).hf
    assert hf.generate.__func__ is type(hf).generate
    assert not (tmp_path / "ran").exists()


def test_no_weight_file_is_mapped(checkpoint):
    folder = checkpoint("olmoe", shard="100KB")
    model = open_model(folder)
    try:
        with open("/proc/self/maps") as maps:
            assert not [line for line in maps if str(folder) in line]
    except FileNotFoundError:
        pytest.skip("no /proc/self/maps")
    assert model.hf.lm_head.weight.data_ptr() % 64 == 0


def test_a_weight_file_larger_than_memory_opens(checkpoint, tmp_path):
    import psutil

    F = int(1.4 * psutil.virtual_memory().total) // (3 * 8 * 3 * 64 * 4)        # in 3 layers of 8 experts of 3 parts
    config = json.loads((checkpoint("olmoe") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": F}))
    header, at = {}, 0
    for name, x in load_file(checkpoint("olmoe") / "model.safetensors").items():
        shape = [F if size == 48 else size for size in x.shape]
        size = torch.Size(shape).numel() * 4
        header[name], at = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}, at + size
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)                                       # zeros that take no room on the disk
    model = open_model(tmp_path)
    assert model.plan.files.size(0) > 1.3 * psutil.virtual_memory().total
    assert not model.hf.lm_head.weight.any()


def test_its_memory_is_free_when_the_model_is_dropped(checkpoint):
    folder = checkpoint("olmoe")
    gc.disable()
    try:
        model = open_model(folder)
        weights = [weakref.ref(parameter) for parameter in model.hf.parameters()]
        del model
        assert not any(weight() is not None for weight in weights)
    finally:
        gc.enable()


def test_a_file_that_changes_between_a_look_and_loading_is_refused(checkpoint, tmp_path):
    from moe_lab.models import study

    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "changing")
    studied = study(folder)
    shutil.copyfile(checkpoint("olmoe", seed=1) / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: .*changed in place"):
        open_model(folder, studied=studied)
    assert studied.plan.files.descriptors == ()


def test_a_file_that_is_replaced_between_a_look_and_loading_is_loaded_as_it_was_looked_at(checkpoint, tmp_path):
    from moe_lab.models import study

    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "replaced")
    studied = study(folder)
    shutil.copy(checkpoint("olmoe", seed=1) / "model.safetensors", folder / "new")
    (folder / "new").replace(folder / "model.safetensors")
    assert torch.equal(open_model(folder, studied=studied).hf.lm_head.weight, eager(checkpoint("olmoe")).lm_head.weight)


def test_memory_that_is_not_there_is_no_damaged_file(checkpoint, monkeypatch):
    from moe_lab.errors import BudgetError

    folder = checkpoint("olmoe")
    for error in (MemoryError("no room"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        def fail(*args, error=error, **more):
            raise error

        monkeypatch.setattr("moe_lab.models.dense.FileTensor.__getitem__", fail)
        with pytest.raises(BudgetError, match="does not fit into memory"):
            open_model(folder)
