"""What the topics of the report share: the engine, both texts, their sweeps, and the results on disk.

Knows how to measure a setting once and keep it by its content, so that an interrupted report goes on where it was.
Knows no claim and no page.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm.auto import tqdm

import moe_lab as ml
from moe_lab.digests import digest
from moe_lab.engine.identity import identity
from moe_lab.evaluation.intervals import Interval, paired
from moe_lab.evaluation.measure import Setting
from moe_lab.evaluation.points import Point
from moe_lab.evaluation.results import Results
from moe_lab.evaluation.sources import sources_digest
from moe_lab.eviction import LRU, EvictionPolicy
from moe_lab.kernels.policy_code import policy_key
from moe_lab.pocket.corpus import WORLDS
from moe_lab.routing import Original, RoutingPolicy

Values = dict[str, Any]
"""Plain values that JSON can hold."""


@dataclass(frozen=True)
class Scale:
    """How much is measured. ``quick`` is for tests: every part runs, no figure means anything."""

    quick: bool
    windows: int
    window: int
    speed_tokens: int
    """Decoded tokens for each speed."""
    bandwidths: tuple[str, ...]
    """Of the simulated disks, the slowest first."""
    synthetic_tokens: int


FULL = Scale(False, 12, 1024, 192, ("10 MB/s", "20 MB/s", "50 MB/s", "200 MB/s"), 4000)
QUICK = Scale(True, 2, 64, 8, ("200 MB/s",), 200)


class Bench:
    """A model, both worlds' texts, and all that was measured on them."""

    def __init__(self, scale: Scale, store: Path, model: str = "pocket") -> None:
        self.scale, self.store, self.model = scale, store, model
        self.engine = ml.load(model, weights="f32")
        self.results = Results(store)
        store.mkdir(parents=True, exist_ok=True)
        length = scale.windows * scale.window + 1
        self.texts = {world: list(self.engine.tokenizer(ml.pocket.held_out(world), verbose=False)["input_ids"])
                      for world in WORLDS}
        self.ids = {world: ids[:length] for world, ids in self.texts.items()}
        spec = self.engine.spec
        self.sizes = sorted({spec.top_k, *(round(share * spec.experts) for share in (0.25, 0.5, 0.75))})
        self.half = round(spec.experts / 2)
        self.model_digest = identity(self.engine).files
        self._sweeps: dict[str, Any] = {}
        self._traces: dict[str, ml.Trace] = {}

    # --- points of sweeps -----------------------------------------------------------------------------

    def setting(self, routing: RoutingPolicy | None = None, slots: int | None = None,
                eviction: EvictionPolicy | None = None) -> Setting:
        """A setting; by default the original routing, LRU, half of the experts."""
        return Setting(routing or Original(), eviction or LRU(), slots or self.half)

    def run(self, plan: dict[str, Sequence[Setting]]) -> None:
        """Measure what is missing of each world's settings; a bar counts settings."""
        with tqdm(total=sum(len(settings) for settings in plan.values()), desc="settings", unit="setting") as bar:
            for world, settings in plan.items():
                for setting in settings:
                    bar.set_postfix_str(f"{world}, {setting.routing!r}, {setting.slots} slots", refresh=False)
                    self._sweep(world).extend([setting])
                    bar.update()

    def point(self, world: str, setting: Setting) -> Point:
        """What was measured of a setting."""
        (point,) = self._sweep(world).extend([setting])
        return point

    def _sweep(self, world: str) -> Any:
        if world not in self._sweeps:
            self._sweeps[world] = ml.sweep(self.engine, self.ids[world], routing="original", cache=self.sizes,
                                           window=self.scale.window, store=self.store)
        return self._sweeps[world]

    def close(self) -> None:
        """Let the model go."""
        for sweep in self._sweeps.values():
            sweep.finish()
        self.engine.close()

    # --- everything else ------------------------------------------------------------------------------

    def kept(self, topic: ModuleType, parts: Sequence[Any], make: Callable[[], Values]) -> Values:
        """The values of ``make``, or those it gave before for the same model, text, code and ``parts``."""
        spec = [identity(self.engine).key, self.scale.window, [digest(self.texts[world]) for world in WORLDS],
                sources_digest(policies=True)]
        key = digest("paper", inspect.getsource(topic), spec, list(parts))
        found = self.results.get(key)
        if found is None:
            found = make()
            self.results.put(key, found)
        return found

    def trace(self, world: str) -> ml.Trace:
        """The original routes over a world's text with all router logits, from the plain model of transformers."""
        if world not in self._traces:
            spec = [identity(self.engine).key, sources_digest(), self.scale.window]
            key = digest("paper trace", spec, digest(self.ids[world]))
            found = self.results.get_trace(key)
            if found is None:
                found = self._record(world)
                self.results.put_trace(key, found)
            self._traces[world] = found
        return self._traces[world]

    def _record(self, world: str) -> ml.Trace:
        import torch
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(Path(self.engine.files[0]).parent, dtype=torch.float32)
        return ml.record(plain, self.ids[world][:-1], logits=True, window=self.scale.window)

    def by_window(self, trace: ml.Trace, layer: int) -> list[np.ndarray]:
        """The ids (window, K) int32 of one layer, window by window."""
        starts = range(0, len(trace), self.scale.window)
        return [np.ascontiguousarray(trace.ids[at : at + self.scale.window, layer]) for at in starts]


def policy_parts(setting: Setting) -> list[Any]:
    """A setting as plain values, for ``Bench.kept``."""
    return [policy_key(setting.routing), policy_key(setting.eviction), setting.slots]


def row(world: str, point: Point) -> Values:
    """A point as a row of the report: rates and shares from 0 to 1, everything rounded to six digits."""
    routing = point.setting.routing
    values = routing.values()
    names = ("miss_rate", "perplexity", "increase", "increase_low", "increase_high", "kl", "agreement", "mass_kept",
             "swapped_share", "loads_per_token", "waits_per_token", "lifetime", "little_check", "regret")
    head = {"world": world, "rule": rule_name(routing), "setting": point.routing, "eviction": point.eviction,
            "slots": point.cache, "strength": float(next(iter(values.values()))) if values else None,
            "keep_top": values.get("keep_top"), "bound": plain(1 - point.original_bound_hit_rate)}
    return {**head, **{name: plain(getattr(point, name)) for name in names}}


def rule_name(routing: RoutingPolicy) -> str:
    """The name of a rule; swapping at random is one of its own."""
    return "swap-random" if routing.values().get("at_random") else routing.name


def plain(value: float) -> float | None:
    """Six significant digits; None for what is not finite, since JSON has no word for it.

    >>> plain(0.123456789), plain(float("nan"))
    (0.123457, None)
    """
    return float(f"{value:.6g}") if np.isfinite(value) else None


def beside(one: Point, other: Point, window: int) -> Interval:
    """Perplexity of ``one`` over that of ``other``, less 1, with its interval, paired over windows."""
    tokens = [window] * len(one.window_losses)
    sums = [[loss * n for loss, n in zip(point.window_losses, tokens, strict=True)] for point in (one, other)]
    return Interval(*(float(np.expm1(end)) for end in paired(*sums, tokens)))
