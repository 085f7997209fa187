"""Make the pictures of the dashboard anew: ``python -m tests.widgets.pictures [folder]``.

Drives a real JupyterLab with the pocket model, in both themes and on a phone's width, and writes PNGs of a few
colours into docs/pictures; together they stay under 300 kB.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import browsing
from PIL import Image

CELL = """import moe_lab as ml
from moe_lab_widgets import Lab

engine = ml.load("pocket", cache="25%", disk=ml.Disk("100 MB/s"))
lab = Lab(engine, max_new_tokens=1900, temperature=1.0, seed=8)
lab"""
STYLE = "body { caret-color: transparent } .jp-OutputPrompt, .jp-InputPrompt { opacity: .6 }"


def _save(data: bytes, file: Path, colours: int = 120) -> None:
    """Write a PNG of its most frequent colours: flat surfaces keep theirs exactly."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    found = sorted(image.getcolors(image.width * image.height), reverse=True)[:colours]
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for _, colour in found for channel in colour])
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    print(f"{file}: {image.width} x {image.height}, {file.stat().st_size / 1000:.0f} kB")


def _write(tab: Any, tokens: int) -> None:
    """Generate, and turn the knobs as a visitor would."""
    tab.do("lab.start(stop_at_end=False)")
    tab.until_asked(f"engine.telemetry.token > {tokens}", 60)
    tab.do("lab.slots = 24")
    tab.until_asked(f"engine.telemetry.token > {2 * tokens}", 60)
    tab.do("lab.routing = 'cache-prior'")
    tab.until_asked(f"engine.telemetry.token > {3 * tokens}", 60)
    tab.do("lab.penalty = 0.4")
    tab.until_asked(f"engine.telemetry.token > {4 * tokens}", 60)


def make(folder: Path) -> None:
    """All pictures, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for theme in ("light", "dark"):
        with tempfile.TemporaryDirectory() as home, browsing.server(Path(home), f"JupyterLab {theme.title()}") as server, \
                browsing.browser() as browser:
            tab = browsing.Tab(browser, server, 1320, 1500)
            tab.open(server.notebook("welcome", [CELL]))
            tab.page.add_style_tag(content=STYLE)
            tab.page.evaluate("() => { const a = window.jupyterapp; if (!a.shell.leftCollapsed) a.commands.execute('application:toggle-left-area'); }")
            tab.run(0)
            tab.until("() => document.querySelector('.moelab canvas.map')?.dataset.seq", seconds=60)
            _write(tab, 100)
            tab.page.hover(".moelab canvas.map", position={"x": 400, "y": 50})
            tab.page.wait_for_timeout(600)
            if theme == "light":
                _save(tab.page.screenshot(clip={"x": 0, "y": 0, "width": 1320, "height": 900}), folder / "dashboard-running.png")
            tab.page.click(".moelab [data-do=step]")
            tab.until("() => document.querySelectorAll('.moelab .said li').length > 2")
            tab.page.wait_for_timeout(1800)
            tab.page.hover(".moelab canvas.map", position={"x": 400, "y": 50})
            tab.page.wait_for_timeout(400)
            _save(tab.page.locator(".moelab").screenshot(), folder / f"dashboard-{theme}.png")
            if theme == "dark":
                tab.page.set_viewport_size({"width": 760, "height": 2600})
                tab.page.evaluate("() => { document.querySelector('.moelab').parentElement.style.width = '390px'; }")
                tab.page.wait_for_timeout(800)
                _save(tab.page.locator(".moelab").screenshot(), folder / "dashboard-narrow.png", 80)
            assert tab.problems == [], tab.problems
            tab.shut()
    print(f"{sum(f.stat().st_size for f in folder.glob('dashboard-*.png')) / 1000:.0f} kB in all")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else browsing.ROOT / "docs" / "pictures")
