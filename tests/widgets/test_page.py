"""The page's script: its logic under node, its types, its size, its palette, and that it asks for nothing."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moe_lab_widgets import still

STATIC = Path(still.__file__).parent / "static"
SCRIPT = STATIC / "lab.js"


def tool(name: str, how: str) -> str:
    """The path of a command, or a skip with a line."""
    local = Path(__file__).parents[2] / ".venv" / "node" / "node_modules" / ".bin" / name
    path = shutil.which(name) or (str(local) if local.exists() else None)
    if path is None:
        pytest.skip(f"no {name}: {how}")
    return path


def test_the_logic_holds_under_node():
    node = tool("node", "apt-get install nodejs")
    done = subprocess.run([node, "--test", str(Path(__file__).parent / "page.mjs")], capture_output=True, text=True,
                          timeout=60, check=False, env={**os.environ, "NODE_OPTIONS": "", "NO_COLOR": "1"})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"# pass (\d+)", done.stdout)[1]) > 40


def test_the_types_hold():
    tsc = tool("tsc", "npm install --prefix .venv/node typescript")
    done = subprocess.run([tsc, *"--noEmit --allowJs --checkJs --strict --target es2022 --module esnext "
                           "--moduleResolution bundler --lib es2023,dom,dom.iterable".split(), str(SCRIPT)],
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


def test_script_and_style_are_small_and_ask_for_nothing():
    script, style = SCRIPT.read_text(), (STATIC / "lab.css").read_text()
    assert len(script.encode()) <= 80_000
    for text in (script, style):
        assert "http" not in text
        assert "@import" not in text
    assert not re.search(r"^\s*import\b|\bimport\(|\brequire\(", script, re.MULTILINE)


def test_nothing_that_arrives_can_become_html():
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function", SCRIPT.read_text())


def test_the_saved_picture_has_the_colours_of_the_live_map():
    node = tool("node", "apt-get install nodejs")
    code = f"import({json.dumps(SCRIPT.as_uri())}).then(m => console.log(JSON.stringify(m.PALETTE.light)))"
    out = subprocess.run([node, "-e", code], capture_output=True, text=True, timeout=30, check=True).stdout
    light = json.loads(out)
    assert tuple(light["disk"]) == still.DISK
    assert tuple(light["loaded"]) == still.LOADED
    assert (tuple(light["low"]), tuple(light["high"])) == still.RAMP
