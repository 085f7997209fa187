"""The dashboard in letters, for a terminal or bare IPython: the same records, drawn by rich.

Knows the widget's session and rich. Knows no page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from moe_lab.units import format_bytes
from moe_lab_widgets import frames

_LETTERS = {"disk": ("·", "bright_black"), "resident": ("▪", "blue"), "used": ("●", "cyan"), "loaded": ("▼", "yellow")}


def in_terminal() -> bool:
    """Whether there is no notebook around: plain Python, a script, or IPython in a terminal."""
    if "IPython" not in sys.modules:
        return True
    from IPython import get_ipython

    shell = get_ipython()
    return shell is None or not hasattr(shell, "kernel")


def panel(lab: Any, width: int = 100) -> Panel:
    """The dashboard as one rich panel."""
    session = lab._session
    numbers = session.history.numbers()
    head = Table.grid(padding=(0, 4))
    head.add_row(
        Text.assemble((f"{numbers.tokens_per_s:.1f}", "bold"), " tokens/s"),
        Text.assemble((f"{numbers.hit_rate:.0%}", "bold"), " reuse"),
        Text.assemble((format_bytes(numbers.read_bytes_per_token), "bold"), " read per token"),
        Text(f"{session.state} · {'exact' if lab.exact else 'lossy'} · {lab.disk}"),
    )
    legend = Text()
    for name, (letter, style) in _LETTERS.items():
        legend.append(f"{letter} ", style)
        legend.append({"disk": "on disk", "used": "used now", "loaded": "just loaded"}.get(name, name) + "   ", "dim")
    words = session.history.words()[-6 * width:]
    return Panel(Group(head, Text(), _map(lab.engine.telemetry.snapshot()), legend, Text(), Text(words)),
                 title=f"MoE Lab · {lab.engine.spec.name}", title_align="left", width=width)


def _map(snapshot: Any) -> Text:
    """One letter an expert, a line a layer."""
    text = Text(no_wrap=True, overflow="crop")
    for row in frames.cells(snapshot):
        for byte in row:
            place = ("loaded" if byte & frames.LOADED else "used" if byte & frames.USED
                     else "resident" if byte & frames.RESIDENT else "disk")
            text.append(*_LETTERS[place])
        text.append("\n")
    return text


def show(lab: Any, console: Console | None = None) -> None:
    """Print the present state once."""
    (console or Console()).print(panel(lab))


def shown(lab: Any, steps: Iterator[Any], console: Console | None = None) -> Iterator[Any]:
    """Yield ``steps`` and keep the panel up to date while they come."""
    console = console or Console()
    if not console.is_terminal:
        yield from steps
        return
    with Live(panel(lab, console.width), console=console, refresh_per_second=8, auto_refresh=False) as live:
        clock = frames.Outbox(fps=8)
        clock.patient = False
        for step in steps:
            if clock.due():
                clock.next()
                live.update(panel(lab, console.width), refresh=True)
            yield step
        live.update(panel(lab, console.width), refresh=True)
