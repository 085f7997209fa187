"""The weight files of a running engine: it goes on as it was loaded, or says which file changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import moe_lab as ml
from moe_lab.errors import CheckpointError, ReadError

PROMPT = [3, 5, 7, 11]


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint("olmoe"), tmp_path / "model")


def another(checkpoint, folder):
    """The weights of another model beside those of ``folder``."""
    return Path(shutil.copy(checkpoint("olmoe", seed=1) / "model.safetensors", folder / "new"))


def text(engine):
    engine.cache.reset()
    return engine.generate(PROMPT, max_new_tokens=6).ids


def test_a_relative_folder_stays_the_same_where_the_program_goes_elsewhere(checkpoint, folder, monkeypatch):
    expected = text(ml.load(str(folder), cache=4))
    (folder.parent / "elsewhere").mkdir()
    shutil.copytree(checkpoint("olmoe", seed=1), folder.parent / "elsewhere" / "model")
    monkeypatch.chdir(folder.parent)
    engine = ml.load("model", cache=4)
    monkeypatch.chdir("elsewhere")
    assert engine.files == (str(folder / "model.safetensors"),)
    assert text(engine) == expected


HARMLESS = {
    "replaced": lambda path, new: new.replace(path),
    "deleted": lambda path, new: path.unlink(),
    "linked and closed to others": lambda path, new: (os.link(path, path.with_name("b")), path.chmod(0o400)),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_an_engine_goes_on_as_loaded_when_its_file_is(checkpoint, folder, what):
    engine = ml.load(str(folder), cache=4)
    expected = text(engine)
    HARMLESS[what](folder / "model.safetensors", another(checkpoint, folder))
    assert text(engine) == expected


def test_a_file_saved_over_in_place_is_an_error_that_names_it_and_never_another_models_experts(checkpoint, folder):
    engine = ml.load(str(folder), cache=4)
    text(engine)
    shutil.copyfile(another(checkpoint, folder), folder / "model.safetensors")
    for _ in range(2):
        with pytest.raises(ReadError, match=r"model\.safetensors.*changed in place.*load the model again"):
            text(engine)
    assert text(ml.load(str(folder), cache=4)) == text(ml.load(str(checkpoint("olmoe", seed=1)), cache=4))


def test_resident_experts_are_used_on_after_their_file_changed(checkpoint, folder):
    engine = ml.load(str(folder), cache="100%")
    expected = engine.generate(PROMPT, max_new_tokens=6).ids
    shutil.copyfile(another(checkpoint, folder), folder / "model.safetensors")
    assert engine.generate(PROMPT, max_new_tokens=6).ids == expected


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_closing_an_engine_closes_its_files(folder):
    def opened():
        links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        return sum(os.path.exists(link) and os.path.samefile(link, folder / "model.safetensors") for link in links)

    engine = ml.load(str(folder), cache=4)
    assert opened() == 1
    engine.close()
    assert opened() == 0


@pytest.mark.parametrize("end", ["npz", "jsonl", "csv"])
def test_a_model_named_by_a_path_object_has_a_name_of_letters(folder, tmp_path, end):
    engine = ml.load(folder, cache=4)
    engine.generate(PROMPT, max_new_tokens=2)
    assert type(engine.spec.name) is str
    assert ml.info(folder).name == engine.spec.name == str(folder)
    engine.trace.write(tmp_path / f"trace.{end}")
    assert ml.Trace.read(tmp_path / f"trace.{end}").meta["model"] == str(folder)


class Odd:
    """A path that is none."""

    def __fspath__(self):
        return b"model"


@pytest.mark.parametrize("name", ["", " ", None, 5, 1.5, b"pocket", ["pocket"], Odd(), "a\0b", "~nobody-of-this-name/x",
                                  "x" * 5000, Path("no/such"), "\ud800"])
def test_what_can_be_no_name_of_a_model_is_an_error_of_the_family(name):
    for ask in (ml.load, ml.info):
        with pytest.raises(CheckpointError):
            ask(name)
