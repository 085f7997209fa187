"""What a saved notebook shows when no kernel is there: a picture of the last state, and a sentence.

Knows snapshots, numbers and pixels. Knows no widget. The colours are those of the live map in its light
theme (a test compares them with the page's table).
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from moe_lab.units import format_bytes
from moe_lab_widgets import frames

PAPER, INK, FAINT = (255, 255, 255), (26, 28, 33), (98, 104, 115)
DISK, LOADED = (214, 218, 224), (204, 84, 0)
RAMP = (62, 120, 170), (8, 58, 110)
WIDTH = 1040
MARGIN = 20


def ramp(level: int) -> tuple[int, ...]:
    """Colour of a resident expert by its level of use, 0 to 15."""
    low, high = np.array(RAMP[0]), np.array(RAMP[1])
    return tuple(int(v) for v in np.rint(low + (high - low) * level / (frames.LEVELS - 1)))


def sentence(name: str, state: str, tokens: int, hit_rate: float, read_bytes: float, tokens_per_s: float,
             exact: bool, disk: str) -> str:
    """One plain sentence of at most 120 characters."""
    if not tokens:
        text = f"MoE Lab: {name} is ready ({'exact' if exact else 'lossy'}, {disk})."
    else:
        text = (f"MoE Lab: {name} {state} after {tokens:,} tokens, reuse {hit_rate:.0%}, "
                f"{format_bytes(read_bytes)} read per token, {tokens_per_s:.0f} tokens/s.")
    return text if len(text) <= 120 else text[:119] + "…"


def png(snapshot: Any, line: str, facts: list[tuple[str, str, str]]) -> bytes:
    """The map of ``snapshot`` under ``facts`` (name, number, unit) and over ``line``, as a PNG of under 30 kB."""
    cells = frames.cells(snapshot)
    L, E = cells.shape
    w = max(3, min(18, (WIDTH - 2 * MARGIN - 28) // E))
    h = max(3, min(18, 380 // L, round(1.4 * w)))
    left, top = MARGIN + 28, 84
    image = Image.new("RGB", (WIDTH, top + L * h + 46), PAPER)
    draw = ImageDraw.Draw(image)
    for i, (name, number, unit) in enumerate(facts):
        x = MARGIN + i * 220
        draw.text((x, 14), name, FAINT, _font(12))
        draw.text((x, 30), number, INK, _font(28))
        draw.text((x + draw.textlength(number, _font(28)) + 6, 45), unit, FAINT, _font(12))
    for layer in range(L):
        if layer % max(1, -(-14 // h)) == 0:
            label = str(layer)
            at = left - 8 - draw.textlength(label, _font(10)), top + layer * h + h / 2 - 6
            draw.text(at, label, FAINT, _font(10))
        for expert in range(E):
            _cell(draw, left + expert * w, top + layer * h, w, h, int(cells[layer, expert]))
    draw.text((MARGIN, top + L * h + 16), line, INK, _font(12))
    out = io.BytesIO()
    image.quantize(64, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def _cell(draw: ImageDraw.ImageDraw, x: int, y: int, w: int, h: int, byte: int) -> None:
    """One expert: a small square on disk, a full tile resident, orange with a cut corner just loaded, a dot used."""
    gap = 1 if w >= 6 else 0
    if not byte & frames.RESIDENT:
        d = max(1, min(w, h) // 4)
        cx, cy = x + (w - gap) / 2, y + (h - gap) / 2
        draw.rectangle((cx - d / 2, cy - d / 2, cx + d / 2 - 1, cy + d / 2 - 1), DISK)
        return
    fill = LOADED if byte & frames.LOADED else ramp(byte >> 4)
    draw.rectangle((x, y, x + w - 1 - gap, y + h - 1 - gap), fill)
    if byte & frames.LOADED and w >= 6:
        draw.polygon([(x, y), (x + w // 2 - 1, y), (x, y + w // 2 - 1)], PAPER)
    if byte & frames.USED:
        r = max(1, min(w, h) // 6)
        cx, cy = x + (w - gap) / 2 - 0.5, y + (h - gap) / 2 - 0.5
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), PAPER)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
