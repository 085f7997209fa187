"""The README's promises that a test can keep: its first code runs, and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from moe_lab.__main__ import parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_first_code_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    assert len(code.group(1).splitlines()) <= 10
    exec(compile(code.group(1), "README.md", "exec"), {})
    lines = re.findall(r"^([a-z-]+) .*miss rate\s+([\d.]+)%", capsys.readouterr().out, re.MULTILINE)
    misses = {routing: float(percent) for routing, percent in lines}
    assert misses["cache-prior"] < misses["original"]


def test_the_make_targets_it_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", README)) <= targets


def test_the_commands_it_names_are_understood() -> None:
    commands = re.findall(r"python -m moe_lab ([a-z]+[^`|\n]*)`", README)
    assert len(commands) >= 3
    for line in commands:
        parser().parse_args(shlex.split(line))


def test_the_files_it_links_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
