"""The house: what the project's own files promise each other. Runs no model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LARGEST_NOTEBOOK = 1_000_000
"""Bytes."""
CONDA_NAMES = {"pytorch-cpu": "torch"}


def committed() -> list[Path]:
    """The files git tracks; outside a clone, there is nothing to hold to."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone: the committed files are unknown")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [path for name in names.decode().split("\0") if name and (path := ROOT / name).is_file()]


def ranges(lines: list[str]) -> dict[str, str]:
    """Requirement lines as {canonical name: version range}; the project's own extras are left out."""
    parsed = [Requirement(line) for line in lines]
    names = [CONDA_NAMES.get(r.name, r.name).lower().replace("_", "-") for r in parsed]
    return {name: str(r.specifier) for name, r in zip(names, parsed, strict=True) if name != "moe-lab"}


def test_conda_environment_has_the_ranges_of_pyproject() -> None:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (from_pip,) = (entry["pip"] for entry in entries if isinstance(entry, dict))
    lines = [e for e in entries if isinstance(e, str)] + [e for e in from_pip if not e.startswith("-e")]
    conda = ranges(lines)
    assert conda.pop("pip") == ""
    assert PROJECT["requires-python"] in conda.pop("python").split(",")
    extras = PROJECT["optional-dependencies"]
    assert conda == ranges([*PROJECT["dependencies"], *extras["widgets"], *extras["lab"]])
    assert "-e ." in from_pip


def test_every_dependency_has_a_range() -> None:
    assert [name for name, spec in ranges(PROJECT["dependencies"]).items() if "<" not in spec or ">=" not in spec] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_makefile_installs_the_torch_that_pyproject_names() -> None:
    command = ["make", "-n", "-B", "install", "TORCH_INDEX="]
    dry = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lowest = next(s.version for s in Requirement(PROJECT["dependencies"][0]).specifier if s.operator == ">=")
    assert f'"torch=={lowest}"' in dry.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_makefile_takes_an_index_address_for_torch() -> None:
    command = ["make", "-n", "install", "TORCH_INDEX=https://example.invalid/cpu"]
    dry = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(r'"torch==[0-9.]+" --index-url "https://example\.invalid/cpu"', dry.stdout)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_an_installation_is_whole_when_its_kernels_are_compiled() -> None:
    command = ["make", "-n", "-B", "install", "TORCH_INDEX="]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    installs, compiles, stamps = ([n for n, line in enumerate(lines) if word in line]
                                  for word in ("-m pip install", "-m moe_lab compile", "touch .venv/.installed"))
    assert len(compiles) == len(stamps) == 1
    assert max(installs) < compiles[0] < stamps[0]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_makefile_says_what_to_do_when_the_named_python_is_none(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    run = subprocess.run(["make", "install", "PYTHON=/no/such/python"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode != 0
    assert "not a Python 3.11" in run.stderr
    assert "make lab PYTHON=" in run.stderr


def test_version_stands_in_pyproject_alone() -> None:
    import moe_lab

    assert moe_lab.__version__ == PROJECT["version"]
    pattern = re.compile(r"(?i)version\W{1,5}" + re.escape(PROJECT["version"]))
    sources = [path for path in committed() if path.suffix in (".py", ".yml", ".js", ".toml")]
    assert [p.name for p in sources if pattern.search(p.read_text())] == ["pyproject.toml"]


def test_committed_notebooks_are_small_and_hold_no_widget_state() -> None:
    for path in (path for path in committed() if path.suffix == ".ipynb"):
        assert path.stat().st_size <= LARGEST_NOTEBOOK, f"{path.name} is over 1 MB: clear its outputs"
        metadata = json.loads(path.read_text())["metadata"]
        assert "widgets" not in metadata, f"{path.name} holds widget state: save it without"


def test_committed_notebooks_have_no_outputs() -> None:
    for path in (path for path in committed() if path.suffix == ".ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert not any(cell.get("outputs") for cell in cells), f"{path.name} has outputs: clear them before committing"


def test_no_committed_file_names_a_path_of_one_machine() -> None:
    folders = "|".join(("work", "root", "home/[a-z]+", "Users/[A-Za-z]+", "farm"))
    pattern = re.compile(rf"""(?:^|[\s"'`=(\[:])/(?:{folders})/""", re.MULTILINE)
    found = []
    for path in committed():
        if path.suffix in (".safetensors", ".png", ".npz", ".npy") or path.name in (".gitignore", "tokenizer.json"):
            continue
        hits = pattern.finditer(path.read_text(errors="ignore"))
        found += [f"{path.relative_to(ROOT)}: {hit.group().strip()}" for hit in hits]
    assert found == []


def test_wheel_carries_the_pocket_model_its_texts_and_both_packages(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE", "moe_lab", "widgets"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tmp_path / name)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"moe_lab/__init__.py", "moe_lab/py.typed", "moe_lab/pocket/model/model.safetensors",
                "moe_lab/pocket/model/config.json", "moe_lab/pocket/model/tokenizer.json",
                "moe_lab/pocket/held_out/python.txt", "moe_lab/pocket/held_out/prose.txt",
                "moe_lab_widgets/__init__.py"}
    assert expected <= names
    assert not any(name.startswith("widgets/") for name in names)
    statics = (ROOT / "widgets" / "moe_lab_widgets" / "static").glob("*.[jc]s*")
    assert {f"moe_lab_widgets/static/{path.name}" for path in statics} <= names
