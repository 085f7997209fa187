"""No source that a sweep runs is forgotten in its key."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import moe_lab as ml
from moe_lab.engine import passes as passing
from moe_lab.evaluation import sources
from moe_lab.evaluation.sources import POLICIES, STEER_NOTHING, changed, files, sources_digest

PROGRAM = """
import sys
import moe_lab as ml
engine = ml.load(sys.argv[1], cache=4)
ml.sweep(engine, list(range(61)), routing=["original", "cache-prior"], eviction=["lru", "arc"], cache=3, window=20,
         store=sys.argv[2]).finish()
engine.close()
print(*(module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "moe_lab"), sep="\\n")
"""


def test_every_module_that_a_sweep_imports_is_in_the_digest_or_has_a_reason_and_another_process_finds_its_results(
        checkpoint, tmp_path, monkeypatch):
    folder, store = str(checkpoint("olmoe")), str(tmp_path / "store")
    done = subprocess.run([sys.executable, "-c", PROGRAM, folder, store], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONHASHSEED": "11", "XDG_CACHE_HOME": str(tmp_path)})
    imported = {Path(line) for line in done.stdout.split()}
    assert len(imported) > 60 and imported <= set(files(policies=True))
    told_by_code = imported - set(files())
    assert told_by_code and all(path.parent.name in ("routing", "eviction") for path in told_by_code)
    monkeypatch.setattr(passing, "one_pass", None)                  # here none is made
    engine = ml.load(folder, cache=8)
    again = ml.sweep(engine, list(range(61)), routing=["original", "cache-prior"], eviction=["lru", "arc"], cache=3,
                     window=20, store=store)
    assert len(again.finish().points) == 4
    engine.close()


@pytest.mark.parametrize("pattern", [*STEER_NOTHING, *POLICIES])
def test_every_exception_is_of_files_that_there_are(pattern):
    root = Path(ml.__file__).parent
    assert list(root.glob(pattern)) and not set(files()) & {p for p in root.glob(pattern) if p.name != "base.py"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a few files in the place of this one."""
    for name in ("__init__.py", "kernels/walk.py", "routing/base.py", "routing/mine.py", "pocket/train.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one")
    monkeypatch.setattr(sources, "_root", lambda: tmp_path)
    sources_digest.cache_clear()
    yield tmp_path
    sources_digest.cache_clear()


@pytest.mark.parametrize(("name", "counts"), [
    ("kernels/walk.py", True), ("routing/base.py", True), ("routing/mine.py", False), ("pocket/train.py", False),
    ("kernels/new.py", True),
])
def test_a_source_that_changes_or_comes_new_counts_unless_it_steers_nothing(package, name, counts):
    before = sources_digest()
    (package / name).write_text("two")
    sources_digest.cache_clear()
    assert (sources_digest() != before) == counts


def test_a_source_changed_while_the_program_runs_is_named(package, monkeypatch):
    assert changed() in files()                     # they are younger than this program
    monkeypatch.setattr(sources.psutil.Process, "create_time", lambda self: time.time())
    assert changed() is None
