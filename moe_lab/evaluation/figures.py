"""Figures of evaluations, in plotly. The only file that knows plotly; imported when a figure is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_lab.errors import SettingError

try:
    import plotly.graph_objects as go
except ImportError as error:
    raise SettingError("figures need plotly, which is not installed; type: pip install 'moe-lab[lab]'") from error

if TYPE_CHECKING:
    from moe_lab.evaluation.points import Point
    from moe_lab.evaluation.sweep import Sweep


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
