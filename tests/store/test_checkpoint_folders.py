"""Which files a folder has: as transformers decides, or a refusal that says what is wrong with which file."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from checkpoints import make

from moe_lab.errors import CheckpointError, UnsupportedModelError
from moe_lab.models import info, open_model
from moe_lab.store import read_checkpoint
from moe_lab.store.checkpoint import INDEX, SINGLE


@pytest.fixture
def single(checkpoint, tmp_path):
    return shutil.copytree(checkpoint("olmoe"), tmp_path / "single")


@pytest.fixture
def sharded(checkpoint, tmp_path):
    return shutil.copytree(checkpoint("olmoe", shard="100KB"), tmp_path / "sharded")


def transformers_files(folder, named=None):
    from transformers.modeling_utils import _get_resolved_checkpoint_files

    files, _ = _get_resolved_checkpoint_files(str(folder), None, None, True, None, False, named,
                                              download_kwargs={"local_files_only": True})
    return files


def set_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def with_both(single, sharded):
    shutil.copy(single / SINGLE, sharded)
    return sharded


def with_a_link_to_nothing_beside_an_index(single, sharded):
    (sharded / SINGLE).symlink_to("gone")
    return sharded


def with_a_folder_of_the_name_of_the_weights(single, sharded):
    (sharded / SINGLE).mkdir()
    return sharded


FOLDERS = {
    "one file": lambda single, sharded: single,
    "an index": lambda single, sharded: sharded,
    "both": with_both,
    "an index beside a link to nothing": with_a_link_to_nothing_beside_an_index,
    "an index beside a folder of the name of the weights": with_a_folder_of_the_name_of_the_weights,
}


@pytest.mark.parametrize("what", FOLDERS)
def test_the_files_are_those_that_transformers_takes(single, sharded, what):
    folder = FOLDERS[what](single, sharded)
    assert [str(path) for path in read_checkpoint(folder).files] == transformers_files(folder)


@pytest.mark.parametrize("named", ["other.safetensors", "other.safetensors.index.json", "sub/../other.safetensors"])
def test_weights_that_the_configuration_names_are_taken(single, sharded, named):
    shutil.copy(single / SINGLE, sharded / "other.safetensors")
    shutil.copy(sharded / INDEX, sharded / "other.safetensors.index.json")
    (sharded / "sub").mkdir()
    expected = [os.path.abspath(path) for path in transformers_files(sharded, named)]
    assert [str(path) for path in open_model(set_config(sharded, transformers_weights=named)).plan.files] == expected


@pytest.mark.parametrize("named", ["../other.safetensors", "/other.safetensors", "weights.bin", "", 5, ["a"], True])
def test_weights_that_are_named_outside_the_folder_or_are_none_are_refused(single, named):
    shutil.copy(single / SINGLE, single.parent / "other.safetensors")
    with pytest.raises(CheckpointError, match="transformers_weights"):
        info(set_config(single, transformers_weights=named))


def test_dense_part_and_experts_come_from_the_same_files(checkpoint, tmp_path):
    import torch

    folder = shutil.copytree(checkpoint("olmoe", shard="100KB"), tmp_path / "both")
    single = checkpoint("olmoe", seed=1)
    shutil.copy(single / SINGLE, folder)
    model = open_model(folder)
    assert torch.equal(model.hf.lm_head.weight, open_model(single).hf.lm_head.weight)
    assert [path.name for path in model.plan.files] == [SINGLE]


def test_a_tensor_in_two_shards_is_the_later_ones_as_transformers_takes_it(sharded):
    from safetensors.torch import load_file, save_file

    shards = sorted(sharded.glob("*.safetensors"))
    name, tensor = next(iter(load_file(shards[0]).items()))
    save_file({**load_file(shards[-1]), name: tensor + 1}, shards[-1], {"format": "pt"})
    assert read_checkpoint(sharded).tensors[name].file == shards[-1]


def test_what_a_distributed_run_saved_is_refused_with_the_way_out(single):
    shutil.copy(single / SINGLE, single / "shard-00000-model-00001-of-00001.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"distributed run .*from_pretrained.*save_pretrained"):
        info(single)


def test_an_adapter_is_refused_with_the_way_out(single):
    (single / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y"}')
    with pytest.raises(UnsupportedModelError, match=r"adapter.*merge_and_unload"):
        info(single)


def broken_link(path):
    path.unlink(missing_ok=True)
    path.symlink_to("../blobs/gone")


def a_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def a_pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_link_to_itself(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


BROKEN = {
    "a link to nothing": (broken_link, r"is a link to \.\./blobs/gone, which is gone; fetch again"),
    "a link to itself": (a_link_to_itself, "symbolic links"),
    "a folder": (a_folder, "is a folder, where a file should be"),
    "a pipe": (a_pipe, "is a device or a pipe"),
    "empty": (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
    "a pointer of git-lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1"),
                             "was not fetched; type git lfs pull"),
    "half fetched by aria2": (lambda path: path.with_name(f"{path.name}.aria2").touch(), "download has not finished"),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("kind", ["single", "index", "shard", "named", "config.json"])
def test_a_file_that_cannot_be_read_is_named_with_its_reason(single, sharded, kind, what):
    folder, file = {"single": (single, SINGLE), "index": (sharded, INDEX), "config.json": (single, "config.json"),
                    "shard": (sharded, sorted(sharded.glob("*.safetensors"))[2].name),
                    "named": (single, "my.safetensors")}[kind]
    if kind == "named":
        (single / SINGLE).rename(single / file)
        set_config(single, transformers_weights=file)
    spoil, words = BROKEN[what]
    spoil(folder / file)
    with pytest.raises(CheckpointError, match=rf"{file} .*{words}"):
        info(folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                  "generation_config.json"])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_beside_the_weights_is_named_with_its_reason(tmp_path, file, what):
    from moe_lab.models import resolve_model

    folder = shutil.copytree(resolve_model("pocket"), tmp_path / "pocket")
    (folder / file).touch()
    spoil, words = BROKEN[what]
    if what == "half fetched by aria2":
        (folder / file).write_text("{}")
    spoil(folder / file)
    with pytest.raises(CheckpointError, match=rf"{file} .*{words}"):
        open_model(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to this user")
def test_a_file_that_may_not_be_read_says_how_to_open_it(single):
    (single / SINGLE).chmod(0)
    with pytest.raises(CheckpointError, match="may not be read by you; type chmod"):
        info(single)


def test_a_download_that_did_not_finish_is_told_where_weights_are_missing(single, sharded):
    (single / SINGLE).rename(single / f"{SINGLE}.incomplete")
    with pytest.raises(CheckpointError, match=r"neither .*a download has not finished: .*incomplete"):
        info(single)
    shutil.rmtree(sharded / ".cache", ignore_errors=True)
    (sharded / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (sharded / ".cache" / "huggingface" / "download" / "x.incomplete").touch()
    sorted(sharded.glob("*.safetensors"))[0].unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of .*a download has not finished"):
        info(sharded)


@pytest.mark.parametrize("text", ['{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
                                  '{"weight_map": {}, "weight_map": {"a": "x.safetensors"}}'])
def test_an_index_that_names_something_twice_is_refused(sharded, text):
    (sharded / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json .*twice"):
        info(sharded)


@pytest.mark.parametrize("shard", ["a\0.safetensors", "\ud800.safetensors", "x" * 300 + ".safetensors", ".safetensors"])
def test_shards_of_impossible_names_are_missing_ones(sharded, shard):
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match="lacks 1 of 1 shards"):
        info(sharded)


def test_a_number_of_open_files_does_not_grow_with_refusals(checkpoint, tmp_path):
    folder = set_config(make(tmp_path / "m", "olmoe", shard="100KB"), num_experts_per_tok=99)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        with pytest.raises(CheckpointError) as kept:
            open_model(folder)
    assert not before or len(os.listdir("/proc/self/fd")) == before, kept
