"""Committed notebooks are small, and carry no widget state (a viewer without a kernel would wait for it in vain)."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(p for folder in ("notebooks", "docs", "benchmarks") for p in (ROOT / folder).rglob("*.ipynb")
                   if ".ipynb_checkpoints" not in p.parts)


def faults(file: Path) -> list[str]:
    """What is wrong with a notebook file."""
    found = []
    if file.stat().st_size > 1_000_000:
        found.append("over 1 MB")
    if "widgets" in json.loads(file.read_text()).get("metadata", {}):
        found.append("holds metadata.widgets: clear it (Settings, Save Widget State Automatically, off)")
    return found


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_committed_notebook_is_small_and_holds_no_widget_state(file):
    assert faults(file) == []


def test_a_heavy_notebook_or_one_with_widget_state_would_be_found(tmp_path):
    heavy, stateful = tmp_path / "heavy.ipynb", tmp_path / "stateful.ipynb"
    heavy.write_text(json.dumps({"metadata": {}, "cells": ["x" * 1_000_001]}))
    stateful.write_text(json.dumps({"metadata": {"widgets": {}}, "cells": []}))
    assert faults(heavy) == ["over 1 MB"]
    assert "metadata.widgets" in faults(stateful)[0]


def test_the_pictures_of_the_dashboard_are_there_and_small():
    pictures = sorted((ROOT / "docs" / "pictures").glob("dashboard-*.png"))
    assert {p.stem for p in pictures} == {f"dashboard-{name}" for name in ("light", "dark", "narrow", "running")}
    assert sum(p.stat().st_size for p in pictures) <= 300_000
