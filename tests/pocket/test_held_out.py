"""The excerpts that ship with the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

from moe_lab import errors, pocket


@pytest.mark.parametrize("world", ["python", "prose"])
def test_each_excerpt_is_long_enough_for_twelve_windows_and_at_most_96_kb(world):
    text = pocket.held_out(world)
    assert 80_000 < len(text.encode()) <= 96_000
    assert "\r" not in text and text.endswith("\n")


def test_the_worlds_are_what_they_say():
    assert pocket.held_out("python").startswith('"""Text wrapping and filling.')
    assert "Design and History FAQ" in pocket.held_out("prose")[:60]
    assert pocket.held_out("python").count("    def ") > 100 > pocket.held_out("prose").count("    def ")


@pytest.mark.parametrize("world", ["Python", "", "english", "../held_out/python"])
def test_an_unknown_world_is_refused_and_both_are_named(world):
    with pytest.raises(errors.SettingError, match=r"python.*prose"):
        pocket.held_out(world)


def test_licence_and_sources_stand_beside_the_excerpts():
    folder = pocket.folder().parent / "held_out"
    assert "Python Software Foundation" in (folder / "LICENSE.txt").read_text()
    assert "textwrap.py" in (folder / "README.md").read_text()


def test_reading_an_excerpt_imports_nothing_heavy():
    code = ("import sys; from moe_lab import pocket; pocket.held_out('prose');"
            "print(sorted({'numpy', 'torch', 'transformers', 'numba'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
