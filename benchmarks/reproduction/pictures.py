"""The report's pictures: plotly figures, photographed by a Chromium without a network.

Knows the plain values of the report. What it draws, the notebook draws too, from the same values.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from moe_lab.pocket.corpus import WORLDS
from moe_lab.units import format_rate
from reproduction import curves
from reproduction.bench import Values

COLOURS = {"cache-prior": "#0072b2", "max-rank": "#d55e00", "cumulative-threshold": "#009e73", "pruned": "#7f7f7f",
           "swap": "#cc79a7", "swap-random": "#56b4e9", "drop-cold": "#b8860b"}
"""Of the rules that are drawn; told apart by people who see colours differently."""
TOP = 0.06
"""Highest increase of perplexity that the main picture shows."""


def all_of(report: Values) -> dict[str, go.Figure]:
    """Every picture by the name of its file, without ``paper-``."""
    return {"curves": curves_figure(report["curves"]), "penalty": penalty_figure(report["curves"]),
            "ranks": ranks_figure(report["ranks"]), "speed": speed_figure(report["speed"])}


def curves_figure(main: Values) -> go.Figure:
    """Perplexity against miss rate: a row a world, a column a size of the cache."""
    sizes = main["sizes"]
    titles = [f"{w}, {s} of {main['experts']} resident" for w in WORLDS for s in sizes]
    figure = make_subplots(len(WORLDS), len(sizes), subplot_titles=titles, horizontal_spacing=0.03,
                           vertical_spacing=0.13, shared_yaxes=True)
    for i, world in enumerate(WORLDS, 1):
        for j, slots in enumerate(sizes, 1):
            rows = [r for r in main["points"] if (r["world"], r["slots"]) == (world, slots)]
            for (rule, keep_top), line in _lines(rows).items():
                dashed = rule == "cache-prior" and keep_top == 2
                name = f"{rule}, J 2" if dashed else rule
                figure.add_scatter(
                    x=[r["miss_rate"] for r in line], y=[r["increase"] for r in line], mode="lines+markers", name=name,
                    legendgroup=name, showlegend=(i, j) == (1, 1 + sizes.index(main["half"])),
                    line=dict(color=COLOURS[rule], width=1.6, dash="dot" if dashed else None), marker_size=5,
                    row=i, col=j)
            base = curves.original(main, world, slots)
            figure.add_scatter(
                x=[base["miss_rate"]], y=[0], mode="markers", name="original, LRU", legendgroup="original",
                marker=dict(symbol="x", color="black", size=8), showlegend=(i, j) == (1, 1), row=i, col=j)
            figure.add_vline(x=base["bound"], line=dict(dash="dash", color="#999999", width=1), row=i, col=j)
    figure.update_yaxes(range=[-0.005, TOP], tickformat="+.0%", gridcolor="#e5e5e5", zerolinecolor="#bbbbbb")
    figure.update_xaxes(tickformat=".0%", rangemode="tozero", gridcolor="#e5e5e5")
    figure.update_yaxes(title="perplexity", col=1)
    figure.update_xaxes(title="miss rate", row=len(WORLDS))
    return _dressed(figure, 1180, 620, "Grey dashes: Belady's bound on the original routes")


def _lines(rows: list[Values]) -> dict[tuple[str, int | None], list[Values]]:
    """Points of one line each, in falling misses: a rule, Cache-Prior by J."""
    found: dict[tuple[str, int | None], list[Values]] = {}
    for r in sorted(rows, key=lambda r: -r["miss_rate"]):
        if r["rule"] in COLOURS:
            found.setdefault((r["rule"], r["keep_top"] if r["rule"] == "cache-prior" else None), []).append(r)
    return found


def penalty_figure(main: Values) -> go.Figure:
    """Misses and perplexity by penalty (J = 1), a line a size; the floor of forced misses beside the misses."""
    figure = make_subplots(2, len(WORLDS), subplot_titles=list(WORLDS), shared_xaxes=True, vertical_spacing=0.06)
    shades = ("#9ecae1", "#4292c6", "#08519c", "#04264c")
    for j, world in enumerate(WORLDS, 1):
        for slots, shade in zip(main["sizes"], shades[-len(main["sizes"]):], strict=True):
            line = sorted((r for r in main["points"] if (r["world"], r["slots"], r["rule"], r["keep_top"]) == (
                world, slots, "cache-prior", 1)), key=lambda r: r["strength"])
            base = curves.original(main, world, slots)
            x = [0, *(r["strength"] for r in line)]
            common: dict[str, Any] = dict(x=x, mode="lines+markers", line_color=shade, name=f"{slots} slots",
                                          legendgroup=str(slots), marker_size=5)
            figure.add_scatter(y=[base["miss_rate"], *(r["miss_rate"] for r in line)], showlegend=j == 1, row=1, col=j,
                               **common)
            figure.add_scatter(y=[0, *(r["increase"] for r in line)], showlegend=False, row=2, col=j, **common)
            figure.add_hline(y=(1 - slots / main["experts"]) / main["top_k"], row=1, col=j,
                             line=dict(dash="dot", color=shade, width=1))
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", gridcolor="#e5e5e5")
    figure.update_yaxes(title="miss rate", row=1, col=1)
    figure.update_yaxes(title="perplexity", tickformat="+.0%", row=2)
    figure.update_xaxes(gridcolor="#e5e5e5")
    figure.update_xaxes(title="penalty", row=2)
    return _dressed(figure, 900, 560, "Cache-Prior, J = 1. Dots: the floor of forced misses")


def ranks_figure(ranks: Values) -> go.Figure:
    """Increase of perplexity with one rank left out or exchanged, on a logarithmic scale."""
    figure = make_subplots(1, len(WORLDS), subplot_titles=list(WORLDS), shared_yaxes=True)
    for j, world in enumerate(WORLDS, 1):
        for how, colour in (("drop", "#d55e00"), ("swap", "#0072b2")):
            rows = [r for r in ranks["points"] if (r["world"], r["how"]) == (world, how)]
            figure.add_bar(x=[str(r["rank"]) for r in rows], y=[max(r["increase"], 1e-4) for r in rows],
                           name={"drop": "left out", "swap": "exchanged"}[how], marker_color=colour, showlegend=j == 1,
                           row=1, col=j)
    figure.update_yaxes(type="log", tickformat="+.2~%", gridcolor="#e5e5e5", dtick=1)
    figure.update_yaxes(title="perplexity", col=1)
    figure.update_xaxes(title="rank", type="category")
    return _dressed(figure, 900, 380, "One rank disturbed, in every layer and for every token")


def speed_figure(speed: Values) -> go.Figure:
    """Tokens a second under both settings, by bandwidth of the simulated disk."""
    figure = make_subplots(1, len(WORLDS), subplot_titles=list(WORLDS), shared_yaxes=True)
    for j, world in enumerate(WORLDS, 1):
        rows = [r for r in speed["rows"] if r["world"] == world]
        names = ["never waits" if r["bandwidth"] is None else format_rate(r["bandwidth"]) for r in rows]
        for key, name, colour in (("lru", "LRU, original", "#7f7f7f"), ("prior", "Cache-Prior", "#0072b2")):
            words = [f"{r[key]['tokens_per_s']:.0f}" if key == "lru" else
                     f"{r[key]['tokens_per_s']:.0f}<br>{r['ratio'][0]:.1f} x" for r in rows]
            figure.add_bar(x=names, y=[r[key]["tokens_per_s"] for r in rows], name=name, marker_color=colour,
                           text=words, textposition="outside", cliponaxis=False, showlegend=j == 1, row=1, col=j)
    figure.update_yaxes(gridcolor="#e5e5e5")
    figure.update_yaxes(title="tokens a second", col=1)
    return _dressed(figure, 900, 380, "Decoding on a simulated disk, half of the experts resident")


def _dressed(figure: go.Figure, width: int, height: int, title: str) -> go.Figure:
    figure.update_layout(width=width, height=height, margin=dict(l=65, r=15, t=110, b=50), plot_bgcolor="white",
                         title=dict(text=title, font_size=15, x=0.01, y=1 - 18 / height),
                         font=dict(family="DejaVu Sans, Arial"),
                         legend=dict(orientation="h", y=1 - 38 / height, x=0, xanchor="left", yanchor="top",
                                     yref="container"))
    return figure


def write(figures: dict[str, go.Figure], folder: Path) -> list[Path]:
    """PNGs of a few colours into ``folder``; an empty list where there is no Chromium to draw them."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in names if (path := shutil.which(name))), None)
    if chromium is None:
        return []
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, figure in figures.items():
            page = browser.new_page(viewport={"width": figure.layout.width, "height": figure.layout.height})
            page.set_content(figure.to_html(include_plotlyjs=True, config={"staticPlot": True}), wait_until="load")
            page.wait_for_selector(".main-svg")
            image = Image.open(io.BytesIO(page.locator(".plotly-graph-div").screenshot())).convert("RGB")
            path = folder / f"paper-{name}.png"
            _save(image, path)
            written.append(path)
            page.close()
        browser.close()
    return written


def _save(image: Image.Image, path: Path, colours: int = 160) -> None:
    """A PNG of its most frequent colours and those of the rules: flat surfaces and lines keep theirs exactly."""
    counts: Any = sorted(image.getcolors(image.width * image.height) or [], reverse=True)
    channels = [channel for _, colour in counts[:colours] for channel in colour]
    for name in COLOURS.values():
        channels += [int(name[at : at + 2], 16) for at in (1, 3, 5)]
    palette = Image.new("P", (1, 1))
    palette.putpalette(channels)
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)
