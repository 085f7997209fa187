"""What a replay found: rows that know their figures, a table that prints itself, frames, figures.

Knows numbers and words. Counts nothing: see ``replay``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from moe_lab.evaluation.disk_model import DiskModel

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

NAN = math.nan


@dataclass(frozen=True)
class ReplayRow:
    """One policy at one cache size over one trace. Rates are 0 to 1, over all expert uses of all layers; NaN where the
    row was skipped. Intervals have 95 %, by bootstrap over windows of tokens."""

    eviction: str
    """Name of the policy, with its parameters where they are not the defaults."""
    cache: int
    """Slots a layer; of the whole pool where the row is ``pooled``."""
    hit_rate: float = NAN
    miss_rate: float = NAN
    bound_hit_rate: float = NAN
    """Hit rate of Belady's bound: the best any eviction could do on the same routes."""
    regret: float = NAN
    """Misses over those of Belady's bound; 1 is the best eviction there is."""
    miss_low: float = NAN
    """Lower end of the miss rate's interval; NaN with one window."""
    miss_high: float = NAN
    over_lru: float = NAN
    """Miss rate less that of LRU on the recorded routes in as many slots; below 0 is better."""
    over_lru_low: float = NAN
    """Lower end of its interval, paired over windows."""
    over_lru_high: float = NAN
    loads_per_token: float = NAN
    """Experts loaded for a token, all layers together."""
    share: float = NAN
    """Slots over experts."""
    predicted_tokens_per_s: float = NAN
    """What the disk model says; NaN without one."""
    trace: str = ""
    """Name of the trace."""
    pooled: bool = False
    """Whether one budget serves all layers."""
    holds_token: bool = True
    """Whether the slots hold all experts that one token uses; a pool may be smaller, and then LRU hits next to
    nothing."""
    routing: str = "original"
    approximate: bool = False
    """Whether the recorded logits were routed again. Other experts would have changed the logits of later layers and
    tokens, so the figures say roughly what a model would do, and nothing of its quality."""
    swapped_share: float = 0.0
    """Share of the uses that went to an expert outside the K largest logits."""
    mass_kept: float = 1.0
    """Gate mass (by softmax) of the chosen over that of the K largest, mean over tokens and layers."""
    original_bound_hit_rate: float = NAN
    """Hit rate of Belady's bound on the recorded routes."""
    seen: float = 0.0
    """Share of the tokens that the policy was trained on: above 0 the row flatters it."""
    skipped: str = ""
    """Why there are no figures."""
    layers: tuple[dict[str, float], ...] = field(default=(), repr=False, compare=False)
    """hit_rate, miss_rate, bound_hit_rate and regret of every layer; empty for a pool."""


FIRST = ("eviction", "cache", "hit_rate", "miss_rate", "bound_hit_rate")
_ROUTED = ("routing", "approximate", "swapped_share", "mass_kept", "original_bound_hit_rate")
_TABLE = {"trace": "{}", "routing": "{}", "eviction": "{}", "cache": "{}", "hit_rate": "{:.1%}", "miss_rate": "{:.1%}",
          "bound_hit_rate": "{:.1%}", "regret": "{:.2f}", "predicted_tokens_per_s": "{:.4g}"}
_LEFT = ("trace", "routing", "eviction")


@dataclass(frozen=True, repr=False)
class Replay:
    """What :func:`replay` found: a table that prints itself."""

    rows: tuple[ReplayRow, ...]
    trace: str
    """The traces in words, a line each."""
    window: int = 0
    """Tokens of the windows that the intervals are made of."""
    disk: DiskModel | None = None
    routed: bool = field(default=False, repr=False)
    """Whether routing policies were asked for."""

    def to_frame(self, layers: bool = False) -> pd.DataFrame:
        """The rows as pandas: eviction, cache, hit_rate, miss_rate, bound_hit_rate, then the other fields of
        :class:`ReplayRow`, without those that say nothing here; with ``layers`` a row for every layer."""
        import pandas as pd

        if layers:
            keys = [key for key in ("trace", "routing", "eviction", "cache") if key in self._columns()]
            return pd.DataFrame([{**{key: getattr(row, key) for key in keys}, **layer}
                                 for row in self.rows for layer in row.layers])
        columns = self._columns()
        return pd.DataFrame([[getattr(row, key) for key in columns] for row in self.rows], columns=list(columns))

    def _columns(self) -> tuple[str, ...]:
        idle = {"layers"}
        if len({row.trace for row in self.rows}) < 2:
            idle.add("trace")
        if not any(row.pooled for row in self.rows):
            idle |= {"pooled", "holds_token"}
        if not self.routed:
            idle |= set(_ROUTED)
        if self.disk is None:
            idle.add("predicted_tokens_per_s")
        if not any(row.seen for row in self.rows):
            idle.add("seen")
        if not any(row.skipped for row in self.rows):
            idle.add("skipped")
        return tuple(key for key in (f.name for f in fields(ReplayRow)) if key not in idle)

    def figure(self) -> go.Figure:
        """Miss rate against cache size, a line with its interval for each policy, Belady's bound dashed; as plotly."""
        from moe_lab.evaluation import figures

        return figures.replay_figure(self)

    def __iter__(self) -> Iterator[ReplayRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        columns = [key for key in _TABLE if key in self._columns()]
        done = [row for row in self.rows if not row.skipped]
        cells = [[key, *(_cell(row, key) for row in done)] for key in columns]
        wide = [max(map(len, column)) for column in cells]
        lines = [" ".join(text.ljust(w) if key in _LEFT else text.rjust(w)
                          for key, text, w in zip(columns, line, wide, strict=True)).rstrip()
                 for line in zip(*cells, strict=True)]
        return "\n".join(["replay of " + self.trace.replace("\n", "\n          "), *lines, *self._notes()])

    def _notes(self) -> list[str]:
        """What a reader of the table must know."""
        notes = []
        if self.disk is not None:
            notes.append(f"tokens/s are predicted by {self.disk!r}, reads waited for")
        if any(row.approximate for row in self.rows):
            notes.append("routings other than the original are approximate: the recorded logits were routed again, and "
                         "other experts would have changed later ones")
        small = [row for row in self.rows if not row.skipped and not row.holds_token]
        if small:
            sizes = ", ".join(map(str, sorted({row.cache for row in small})))
            notes.append(f"pools of {sizes} slots hold less than one token uses")
        for text in dict.fromkeys(f"{row.eviction} was trained on {row.seen:.0%} of {row.trace or 'these'} tokens: its "
                                  "figures flatter it" for row in self.rows if row.seen and not row.skipped):
            notes.append(text)
        many = len({row.trace for row in self.rows}) > 1
        skipped: dict[str, list[str]] = {}
        for row in self.rows:
            if row.skipped:
                skipped.setdefault(f"{row.trace + ', ' if many else ''}{row.skipped}", []).append(_words(row))
        notes += [f"skipped {_few(whom)}: {reason}" for reason, whom in skipped.items()]
        return notes


def _few(words: list[str]) -> str:
    """The first ones, and how many there are."""
    shown = list(dict.fromkeys(words))
    return "; ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _cell(row: ReplayRow, key: str) -> str:
    value: Any = getattr(row, key)
    mark = "~" if key == "routing" and row.approximate else ""
    return mark + _TABLE[key].format(value)


def _words(row: ReplayRow) -> str:
    routing = "" if row.routing == "original" else f"{row.routing}, "
    return f"{routing}{row.eviction}, {row.cache} slots"
