"""From a name to a folder, and what a wrong name is told."""

from __future__ import annotations

import dataclasses

import pytest

from moe_lab.errors import CheckpointError
from moe_lab.models import info, open_model, resolve_model


def test_pocket_is_the_packaged_folder():
    assert (resolve_model("pocket") / "model.safetensors").exists()


def test_a_local_folder_is_itself(tmp_path):
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_mistyped_folder_names_the_nearest(tmp_path):
    (tmp_path / "my-olmoe").mkdir()
    with pytest.raises(CheckpointError, match=r"nearest: '.*my-olmoe'.*type 'pocket'"):
        open_model(str(tmp_path / "my-olmo"))


def test_a_mistyped_pocket_is_recognised():
    with pytest.raises(CheckpointError, match="nearest: 'pocket'"):
        resolve_model("poket")


def test_a_folder_in_a_folder_that_is_not_there_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist either"):
        resolve_model(tmp_path / "no" / "such")


def test_a_file_is_told_to_be_its_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="type the folder"):
        resolve_model(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", ["", 5, None, ["pocket"]])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(CheckpointError, match="type 'pocket'"):
        resolve_model(name)


def test_an_id_that_cannot_be_fetched_offline_says_so():
    for ask in (resolve_model, info):
        with pytest.raises(CheckpointError, match=r"there is no folder 'nobody/nothing'.*cannot be reached"):
            ask("nobody/nothing")


def test_only_weights_configuration_and_tokenizer_are_fetched(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}
    def download(name, **options):
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("some/model") == tmp_path
    from huggingface_hub.utils import filter_repo_objects

    wanted = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
              "merges.txt", "chat_template.jinja"]
    others = ["pytorch_model.bin", "modeling_evil.py", "original/consolidated.00.pth", "consolidated.safetensors",
              "original/x.safetensors", "README.md", "model.gguf"]
    assert list(filter_repo_objects(wanted + others, **asked)) == wanted


def test_info_of_a_hub_id_reads_headers_and_fetches_no_weights(monkeypatch, checkpoint, tmp_path):
    """The hub is played by a folder whose weights are somewhere else."""
    import shutil

    import huggingface_hub
    from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo

    from moe_lab.store import read_checkpoint

    folder = checkpoint("olmoe")
    shutil.copy(folder / "config.json", tmp_path)
    tensors = {
        name: TensorInfo(t.dtype, list(t.shape), (t.offset, t.offset + t.nbytes))
        for name, t in read_checkpoint(folder).tensors.items()
    }
    header = SafetensorsFileMetadata({}, tensors)
    whole = SafetensorsRepoMetadata({}, False, {}, {"model.safetensors": header})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **kw: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda name: whole)
    remote, local = info("some/model"), info(folder)
    assert remote.name == "some/model"
    assert dataclasses.replace(remote, name=local.name) == local


def test_info_of_a_hub_id_reads_the_weights_that_its_configuration_names(monkeypatch, checkpoint, tmp_path):
    import json
    import shutil

    import huggingface_hub
    from huggingface_hub.utils import SafetensorsFileMetadata, TensorInfo

    from moe_lab.store import read_checkpoint

    folder = checkpoint("olmoe", shard="100KB")
    config = json.loads((folder / "config.json").read_text())
    named = {"one": "mine.safetensors", "index": "mine.safetensors.index.json"}
    shutil.copy(folder / "model.safetensors.index.json", tmp_path / named["index"])
    tensors = read_checkpoint(folder).tensors.values()

    def header(name, file):
        there = [t for t in tensors if file == named["one"] or t.file.name == file]
        return SafetensorsFileMetadata({}, {t.name: TensorInfo(t.dtype, list(t.shape), (0, t.nbytes)) for t in there})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **kw: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "parse_safetensors_file_metadata", header)
    for file in named.values():
        (tmp_path / "config.json").write_text(json.dumps({**config, "transformers_weights": file}))
        assert dataclasses.replace(info("some/model"), name="") == dataclasses.replace(info(folder), name="")
