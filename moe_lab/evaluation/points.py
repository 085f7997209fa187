"""From sums to figures: what a point of a sweep says, and how it follows from the counts.

Knows arithmetic. Ran nothing and reads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from moe_lab.evaluation.intervals import Interval, paired
from moe_lab.evaluation.measure import Setting
from moe_lab.evaluation.naming import label
from moe_lab.spec import ModelSpec


@dataclass(frozen=True)
class Point:
    """One setting, measured, beside the original routing. Rates are 0 to 1 over all expert uses."""

    routing: str
    eviction: str
    cache: int
    """Slots a layer."""
    hit_rate: float
    miss_rate: float
    bound_hit_rate: float
    """Hit rate of Belady's bound on this point's own routes."""
    original_bound_hit_rate: float
    """Hit rate of Belady's bound on the original routes: what no eviction could beat without touching the routing."""
    regret: float
    """Misses over those of Belady's bound on the same routes; 1 is the best eviction there is."""
    perplexity: float
    increase: float
    """Perplexity over that of the original routing, less 1."""
    increase_low: float
    """Lower end of the 95 % interval, paired over windows; NaN with one window."""
    increase_high: float
    kl: float
    """Mean KL(original || this) of the next token, in nats."""
    agreement: float
    """Share of the tokens whose likeliest successor is the original one."""
    mass_kept: float
    """Gate mass of the chosen over that of the original top K, mean over tokens and layers."""
    swapped_share: float
    """Share of the uses that went to an expert outside the original top K."""
    loads_per_token: float
    """Experts loaded for a token, all layers together."""
    waits_per_token: float
    """Layers at which a token loads at least one expert."""
    lifetime: float
    """Mean number of tokens an expert stays resident, cut at the window's end."""
    little_check: float
    """Loads a token and layer, times lifetime, over the slots: 1 by Little's law, less what the first tokens of a
    window leave empty."""
    exact: bool
    """Whether the routing is the original one."""
    digest: str
    """Hash of all routes."""
    setting: Setting = field(repr=False, compare=False)
    """The policies themselves and the slots."""
    layers: tuple[dict[str, float], ...] = field(repr=False, compare=False)
    """The same rates of every layer."""
    window_losses: tuple[float, ...] = field(repr=False, compare=False)
    """Mean loss a token of each window."""
    made: dict[str, Any] = field(repr=False, compare=False)
    """Versions, threads and seconds that it took."""


COLUMNS = tuple(f.name for f in fields(Point) if f.repr)
"""What a row of a frame shows."""


def point_of(setting: Setting, record: dict[str, Any], reference: dict[str, Any], bound: float,
             spec: ModelSpec) -> Point:
    """The point of a record of ``measure`` beside the ``reference``, on whose routes ``bound`` is Belady's hit rate."""
    tokens, sums = record["tokens"], record["layers"]
    total = sum(tokens)
    loss = sum(record["losses"]) / total
    change = Interval(0.0, 0.0, 0.0)
    if setting.routing.lossy:
        change = _change(record["losses"], reference["losses"], tokens)
    layers = [dict(zip(sums, values, strict=True)) for values in zip(*sums.values(), strict=True)]
    whole = {name: sum(values) for name, values in sums.items()}
    return Point(
        routing=label(setting.routing), eviction=label(setting.eviction), cache=setting.slots,
        original_bound_hit_rate=bound,
        perplexity=_raised(math.exp, loss),
        increase=change.mean, increase_low=change.low, increase_high=change.high,
        kl=max(0.0, sum(record["kl"]) / total), agreement=sum(record["same"]) / total,
        loads_per_token=whole["misses"] / total, waits_per_token=whole["waits"] / total,
        exact=not setting.routing.lossy, digest=record["digest"], setting=setting,
        layers=tuple({"layer": place, **_rates(counts, total, setting.slots)}
                     for place, counts in zip(spec.layers, layers, strict=True)),
        window_losses=tuple(one / n for one, n in zip(record["losses"], tokens, strict=True)),
        made={**record["made"], "elapsed_s": record["elapsed_s"]},
        **_rates(whole, total * len(layers), setting.slots),
    )


def _change(losses: list[float], others: list[float], tokens: list[int]) -> Interval:
    """Perplexity over another, less 1. An infinite loss leaves no spread; infinity over infinity is NaN."""
    if all(map(math.isfinite, [*losses, *others])):
        return Interval(*(_raised(math.expm1, end) for end in paired(losses, others, tokens)))
    return Interval(_raised(math.expm1, (sum(losses) - sum(others)) / sum(tokens)), math.nan, math.nan)


def _raised(power: Callable[[float], float], exponent: float) -> float:
    """A power of e; infinity where no float holds it."""
    return math.inf if exponent >= 700 else power(exponent)


def _rates(counts: dict[str, float], routes: int, slots: int) -> dict[str, float]:
    """Rates of ``counts`` over ``routes`` (tokens x layers)."""
    uses, misses, bound = counts["uses"] or 1, counts["misses"], counts["bound"]
    lifetime = counts["stay"] / misses if misses else math.nan
    return {"hit_rate": 1 - misses / uses, "miss_rate": misses / uses, "bound_hit_rate": 1 - bound / uses,
            "regret": misses / bound if bound else 1.0, "mass_kept": counts["mass"] / routes,
            "swapped_share": counts["swapped"] / uses, "lifetime": lifetime,
            "little_check": misses / routes * lifetime / slots if misses else math.nan}
