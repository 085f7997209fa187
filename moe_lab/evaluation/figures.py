"""Figures of evaluations, in plotly. The only file that knows plotly; imported when a figure is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_lab.errors import SettingError

try:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots
except ImportError as error:
    raise SettingError("figures need plotly, which is not installed; type: pip install 'moe-lab[lab]'") from error

if TYPE_CHECKING:
    from moe_lab.evaluation.points import Point
    from moe_lab.evaluation.replayed import Replay, ReplayRow
    from moe_lab.evaluation.sweep import Sweep


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6000", "#5e3c99", "#b2182b",
           "#4d9221")
"""Ten that stay apart for the colour-blind too, after Okabe and Ito."""
_DASHES = ("solid", "dot", "dashdot")
_INK, _GRID = "#333333", "#e6e6e6"


def replay_figure(replay: Replay) -> go.Figure:
    """Miss rate against slots: a line for each policy with its interval as a band, Belady's bound dashed below; a panel
    for each trace. With one size a dot for each policy. In a pool a line marks what one token uses."""
    rows = [row for row in replay.rows if not row.skipped]
    names = list(dict.fromkeys(row.trace for row in rows))
    lines = list(dict.fromkeys(_line(row) for row in rows))
    figure = make_subplots(cols=max(1, len(names)), shared_yaxes=True, horizontal_spacing=0.03,
                           subplot_titles=names if len(names) > 1 else None)
    for place, name in enumerate(names, 1):
        here = [row for row in rows if row.trace == name]
        one_size = len({row.cache for row in here}) == 1
        for number, line in enumerate(lines):
            if own := sorted((row for row in here if _line(row) == line), key=lambda row: row.cache):
                _draw(figure, own, line, number, place, min(0.15, 0.4 / len(lines)), one_size)
        _draw_bound(figure, here, place, one_size, replay.routed)
        _name_axis(figure, here, place, one_size)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", gridcolor=_GRID, zeroline=False, linecolor=_INK)
    figure.update_yaxes(title="miss rate", col=1)
    words = f"intervals: 95 %, by bootstrap over windows of {replay.window:,} tokens"
    words += "; ~ approximate, recorded logits routed again" if any(row.approximate for row in rows) else ""
    figure.update_layout(template="plotly_white", font=dict(color=_INK), hovermode="closest",
                         title=dict(text=words, font=dict(size=12), x=0.01), margin=dict(t=70, r=20))
    return figure


def _line(row: ReplayRow) -> str:
    """Which line a row belongs to."""
    if row.routing == "original":
        return row.eviction
    return f"{'~' if row.approximate else ''}{row.routing}, {row.eviction}"


def _draw(figure: go.Figure, rows: list[ReplayRow], name: str, number: int, place: int, pale: float,
          one_size: bool) -> None:
    """One policy: its line and band, or its dot and bar."""
    colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number // len(COLOURS) % len(_DASHES)]
    x: list[object] = [name] if one_size else [row.cache for row in rows]
    apart = dict(type="data", array=[row.miss_high - row.miss_rate for row in rows],
                 arrayminus=[row.miss_rate - row.miss_low for row in rows], visible=len(rows) == 1, thickness=1.5)
    if len(rows) > 1:
        figure.add_scatter(x=[*x, *reversed(x)], col=place, row=1, fill="toself", fillcolor=colour, opacity=pale,
                           y=[*(row.miss_high for row in rows), *(row.miss_low for row in reversed(rows))],
                           mode="lines", line=dict(width=0), legendgroup=name, showlegend=False, hoverinfo="skip")
    figure.add_scatter(
        x=x, y=[row.miss_rate for row in rows], col=place, row=1, name=name, legendgroup=name,
        showlegend=place == 1 and not one_size, mode="lines+markers" if len(rows) < 12 else "lines",
        line=dict(color=colour, width=2, dash=dash), marker=dict(color=colour, size=9 if one_size else 6),
        error_y=apart,
        customdata=[[row.miss_low, row.miss_high, row.regret, row.over_lru, row.cache] for row in rows],
        hovertemplate=f"{name}<br>%{{customdata[4]}} slots: %{{y:.1%}} (%{{customdata[0]:.1%}} to "
                      "%{customdata[1]:.1%})<br>regret %{customdata[2]:.2f}, over LRU %{customdata[3]:+.1%}"
                      "<extra></extra>")


def _draw_bound(figure: go.Figure, rows: list[ReplayRow], place: int, one_size: bool, routed: bool) -> None:
    """What no eviction could beat on the recorded routes."""
    bound = dict(sorted((row.cache, 1 - (row.original_bound_hit_rate if routed else row.bound_hit_rate))
                        for row in rows))
    look = dict(color=_INK, width=1.5, dash="dash")
    if one_size:
        figure.add_hline(y=next(iter(bound.values())), col=place, row=1, line=look, annotation=dict(
            text="Belady's bound", yanchor="bottom", xanchor="right", font=dict(size=11)))
        return
    figure.add_scatter(x=list(bound), y=list(bound.values()), col=place, row=1, name="Belady's bound",
                       legendgroup="bound", showlegend=place == 1, mode="lines", line=look,
                       hovertemplate="Belady's bound<br>%{x} slots: %{y:.1%}<extra></extra>")


def _name_axis(figure: go.Figure, rows: list[ReplayRow], place: int, one_size: bool) -> None:
    """Slots of how many; and where a pool begins to hold what one token uses."""
    experts, what = round(rows[0].cache / rows[0].share), "of the pool" if rows[0].pooled else "a layer"
    title = f"{rows[0].cache:,} slots {what}, of {experts:,}" if one_size else f"slots {what}, of {experts:,}"
    figure.update_xaxes(col=place, title=title, gridcolor=_GRID, zeroline=False, linecolor=_INK, ticks="outside")
    if not one_size and not all(row.holds_token for row in rows) and any(row.holds_token for row in rows):
        figure.add_vline(x=min(row.cache for row in rows if row.holds_token), col=place, row=1,
                         line=dict(color=_INK, width=1, dash="dot"),
                         annotation=dict(text="holds one token's experts", textangle=-90, yanchor="top", xanchor="left",
                                         font=dict(size=11)))


def sweep_figure(sweep: Sweep) -> go.Figure:
    """Increase of perplexity (with its interval) against miss rate: a line for each routing policy, eviction and
    cache, over its parameters; a dotted line at Belady's bound of the original routing."""
    figure = go.Figure()
    lines: dict[tuple[str, str, int], list[Point]] = {}
    for point in sweep.points:
        lines.setdefault((point.setting.routing.name, point.eviction, point.cache), []).append(point)
    for (name, eviction, cache), points in lines.items():
        points.sort(key=lambda p: p.miss_rate)
        figure.add_scatter(
            x=[p.miss_rate for p in points], y=[p.increase for p in points], mode="lines+markers",
            name=f"{name}, {eviction}, {cache} slots", text=[p.routing for p in points],
            error_y=dict(type="data", array=[p.increase_high - p.increase for p in points],
                         arrayminus=[p.increase - p.increase_low for p in points]),
            customdata=[[p.perplexity, p.kl, p.swapped_share] for p in points],
            hovertemplate="%{text}<br>miss rate %{x:.1%}, perplexity %{customdata[0]:.3f} (%{y:+.2%})<br>"
                          "KL %{customdata[1]:.4f}, swapped %{customdata[2]:.1%}<extra></extra>",
        )
    for cache, bound in sorted({p.cache: 1 - p.original_bound_hit_rate for p in sweep.points}.items()):
        figure.add_vline(x=bound, line_dash="dot", annotation_text=f"Belady, original routing, {cache} slots",
                         annotation_textangle=-90)
    figure.update_layout(xaxis=dict(title="miss rate", tickformat=".0%", rangemode="tozero"),
                         yaxis=dict(title="perplexity over the original routing's", tickformat="+.1%"),
                         title=f"{sweep.tokens:,} tokens in windows of {sweep.window:,}")
    return figure
