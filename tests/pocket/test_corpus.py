"""Where the pocket model's text comes from, and that what is held out stays out."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from moe_lab.pocket import corpus
from moe_lab.pocket.corpus import HELD_OUT, Document


@pytest.fixture
def only_library(monkeypatch):
    """The standard library alone: the same on every machine, and quick."""
    monkeypatch.setattr(corpus, "PACKAGES", ())


@pytest.fixture
def prose(tmp_path):
    """A hundred and twenty short English chapters."""
    folder = tmp_path / "prose"
    (folder / "part").mkdir(parents=True)
    for i in range(120):
        text = f"Chapter {i}\n\n" + f"The {i}th door was open, and nobody knew marker{i} any more. " * 20
        (folder / "part" / f"chapter{i}.rst").write_text(text)
    return folder


def test_what_is_held_out_is_decided_by_the_name_alone(tmp_path):
    assert [Document("python", f"python/a{i}.py", tmp_path).held_out for i in (0, 1, 2)] == [False] * 3
    # a change of these numbers would move documents between training and held-out text
    held = [i for i in range(400) if Document("python", f"python/a{i}.py", tmp_path).held_out]
    assert held == [84, 92, 102, 166, 214, 227, 239, 251, 271, 335, 356, 363, 372]
    assert all(Document(world, name, tmp_path).held_out for world, names in HELD_OUT.items() for name in names)
    assert not Document("prose", "python/heapq.py", tmp_path).held_out


def test_the_split_of_the_standard_library_holds_out_the_named_modules_and_one_in_forty(only_library):
    documents = list(corpus.python_documents())
    names = [d.name for d in documents]
    assert len(set(names)) == len(names) > 300
    assert {d.name for d in documents if d.held_out} >= set(HELD_OUT["python"])
    assert 0.01 < sum(d.held_out for d in documents) / len(documents) < 0.08
    assert names == [d.name for d in corpus.python_documents()]


def test_tests_vendored_copies_and_large_tables_are_left_out(only_library):
    for document in corpus.python_documents():
        assert not {"test", "tests", "site-packages", "_vendor"} & set(document.name.split("/")), document
        assert document.path.stat().st_size < corpus.LARGEST


def test_a_machine_without_prose_is_told_what_to_type(monkeypatch, only_library):
    monkeypatch.setattr(corpus, "MANUALS", ())
    with pytest.raises(SystemExit) as stop:
        corpus.gather()
    assert "apt-get install python3-doc git-doc linux-doc" in str(stop.value)
    assert "--prose FOLDER" in str(stop.value)


def test_an_empty_folder_of_prose_is_told_so_too(tmp_path, only_library):
    with pytest.raises(SystemExit, match="--prose FOLDER"):
        corpus.gather(tmp_path)


def test_a_folder_of_texts_is_read_with_its_subfolders(prose, only_library):
    (prose / "notes.md").write_text("A note. " * 50)
    (prose / "picture.png").write_bytes(b"x" * 500)
    (prose / "short.txt").write_text("too short")
    names = {d.name for d in corpus.gather(prose)["prose"]}
    assert len(names) == 121
    assert {"prose/notes.md", "prose/part/chapter7.rst"} <= names


def test_packed_files_are_unpacked_and_undecodable_bytes_dropped(tmp_path):
    (tmp_path / "a.rst.gz").write_bytes(gzip.compress("naïve\r\n".encode()))
    (tmp_path / "b.py").write_bytes(b"caf\xe9 = 1\n")
    assert Document("prose", "m/a.rst.gz", tmp_path / "a.rst.gz").text() == "naïve\r\n"
    assert Document("python", "p/b.py", tmp_path / "b.py").text() == "caf = 1\n"


def test_one_manual_under_two_names_is_read_once(tmp_path, monkeypatch, only_library):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("The door was open. " * 50)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    manuals = [("manual", str(tmp_path / name), "*.txt") for name in ("real", "linked")]
    monkeypatch.setattr(corpus, "MANUALS", manuals)
    assert [d.name for d in corpus.gather()["prose"]] == ["manual/a.txt"]


def test_prepared_tokens_hold_every_document_once_and_nothing_held_out_is_trained_on(prose, tmp_path, monkeypatch):
    def few():
        for i in range(60):
            path = tmp_path / f"m{i}.py"
            path.write_text(f"def marker{i}(x):\n    return x * {i}\n" * 12)
            yield Document("python", f"python/m{i}.py", path)

    monkeypatch.setattr(corpus, "python_documents", few)
    monkeypatch.setattr(corpus, "LEAST", 100)
    out = tmp_path / "tokens"
    corpus.prepare(out, prose)
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    sources = json.loads((out / "sources.json").read_text())
    worlds = corpus.gather(prose)
    for world in corpus.WORLDS:
        for part in ("train", "held"):
            documents = [d for d in worlds[world] if d.held_out == (part == "held")]
            assert documents, "the fixture's names leave this part empty"
            ids = np.load(out / f"{world}.{part}.npy")
            assert ids.dtype == np.uint16
            texts = tokenizer.decode(ids.tolist(), skip_special_tokens=False).split(corpus.END)
            assert texts.pop() == ""
            assert sorted(texts) == sorted(d.text() for d in documents)
            size = sum(len(d.text().encode()) for d in documents)
            assert sources[f"{world}.{part}"] == {
                "documents": len(documents), "bytes": size, "tokens": len(ids), "sources": {world: size},
            }


def test_too_little_text_is_refused_with_the_figure(tmp_path, monkeypatch):
    (tmp_path / "one.txt").write_text("The door was open. " * 50)
    (tmp_path / "one.py").write_text("x = 1\n" * 100)
    monkeypatch.setattr(corpus, "python_documents", lambda: iter([Document("python", "p/one.py", tmp_path / "one.py")]))
    with pytest.raises(SystemExit, match=r"the python text makes [\d,]+ tokens and training needs 4,096"):
        corpus.prepare(tmp_path / "tokens", tmp_path)


def test_excerpts_are_cut_from_the_named_documents_at_the_end_of_a_line(tmp_path, monkeypatch):
    def documents(world):
        for i, name in enumerate(HELD_OUT[world]):
            path = tmp_path / f"{world}{i}"
            path.write_text(f"\n{world} {i}\n" + "line of text\n" * 40)
            yield Document(world, name, path)
        yield Document(world, "python/other.py", tmp_path / "absent")

    monkeypatch.setattr(corpus, "gather", lambda: {w: list(documents(w)) for w in corpus.WORLDS})
    corpus.write_held_out(tmp_path, size=1000)
    for world in corpus.WORLDS:
        text = (tmp_path / "held_out" / f"{world}.txt").read_text()
        assert text.startswith(f"{world} 0\nline of text\n")
        assert f"\n\n{world} 1\n" in text
        assert f"{world} 2" not in text
        assert 980 < len(text) <= 1001
        assert text.endswith("line of text\n")
