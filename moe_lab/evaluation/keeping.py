"""What a sweep finds of earlier ones and keeps for later ones: under which key, and whether it is whole.

Knows what steers a figure: the engine's identity, this package's sources, the text, its windows, both policies and the
slots. Where one of them has no digest, nothing is looked up and nothing kept, and a line says so. Measures nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_lab.digests import Stretch, digest, digests
from moe_lab.engine.identity import identity
from moe_lab.errors import SettingError
from moe_lab.evaluation.measure import COUNTED, Setting
from moe_lab.evaluation.results import Results
from moe_lab.evaluation.sources import changed, sources_digest
from moe_lab.eviction import LRU
from moe_lab.kernels.policy_code import code_of, policy_key
from moe_lab.routing import Original
from moe_lab.trace import Trace

if TYPE_CHECKING:
    from moe_lab.engine import Engine


class Keeping:
    """The results of one text on one engine, as the engine is when this is made. ``files``: whether the identity has to
    hold elsewhere, even if nothing is kept.

    Raises:
        ReadError: a weight file is gone, or has changed since it was loaded.
    """

    def __init__(self, engine: Engine, ids: Sequence[int], window: int, results: Results, files: bool = False) -> None:
        self._engine, self._results, self._files = engine, results, files or results.folder is not None
        self.identity = identity(engine, self._files)
        self._sizes = [min(window, len(ids) - 1 - start) for start in range(0, len(ids) - 1, window)]
        self._base = [self.identity.key, sources_digest(), digest(list(ids)), window,
                      policy_key(Original()), policy_key(LRU())]
        self._told: set[str] = set()
        if reason := self.identity.strange or _odd_source():
            self._results = Results(None)
            self._tell(results, f"{reason}: no digest can stand for what it computes")

    @property
    def folder(self) -> Path | None:
        """Where results are kept; None for nowhere."""
        return self._results.folder

    def check(self) -> None:
        """Raise a SettingError where the engine is another by now: points of two models cannot stand side by side."""
        if odd := identity(self._engine, self._files).apart(self.identity):
            raise SettingError(f"the engine was changed since this sweep was made: {', '.join(odd)}; make a new one, "
                               "ml.sweep(...). What was measured before is kept")

    # --- settings -------------------------------------------------------------------------------------

    def record(self, setting: Setting) -> dict[str, Any] | None:
        """What was kept of a setting, if it is whole."""
        if (key := self._key(setting)) is None or (found := self._results.get(key)) is None:
            return None
        layers = found.get("layers")
        counts = isinstance(layers, dict) and set(layers) == {*COUNTED, "mass"} and all(
            _numbers(value, self._engine.spec.L) for value in layers.values())
        return found if counts and self._fits(found) else None

    def keep(self, setting: Setting, record: dict[str, Any]) -> dict[str, Any]:
        """Keep the record of a setting, and give it back."""
        if (key := self._key(setting)) is not None:
            self._results.put(key, record)
        return record

    def _key(self, setting: Setting) -> str | None:
        for policy in (setting.routing, setting.eviction):
            if strange := code_of(type(policy)).strange:
                self._tell(self._results, f"{policy.name!r}: {strange}")
                return None
        return digest(*self._base, policy_key(setting.routing), policy_key(setting.eviction), setting.slots)

    # --- the original routing -------------------------------------------------------------------------

    def reference(self) -> tuple[dict[str, Any] | None, Trace | None]:
        """Record and trace of the original routing, both or none."""
        key = digest("reference", *self._base)
        record, trace = self._results.get(key), self._results.get_trace(key)
        if record is None or trace is None or not self._fits(record):
            return None, None
        spec = self._engine.spec
        shape = len(trace), trace.L, trace.experts, trace.K
        whole = shape == (sum(self._sizes), spec.L, spec.experts, spec.top_k) and record["digest"] == trace.digest()
        return (record, trace) if whole and record.get("gates") == _gates(trace) else (None, None)

    def keep_reference(self, record: dict[str, Any], trace: Trace) -> None:
        """Keep both."""
        key = digest("reference", *self._base)
        self._results.put_trace(key, trace)
        self._results.put(key, {**record, "gates": _gates(trace)})

    def _fits(self, record: dict[str, Any]) -> bool:
        """Whether a record is one of this text: a row of numbers for its windows each."""
        rows = all(_numbers(record.get(name), len(self._sizes)) for name in ("tokens", "losses", "kl", "same"))
        digest = record.get("digest")
        return (rows and record["tokens"] == self._sizes and isinstance(digest, str) and len(digest) == 32
                and _numbers([record.get("elapsed_s")], 1) and isinstance(record.get("made"), dict))

    def _tell(self, results: Results, why: str) -> None:
        """Say once that something is not kept, if anything is to be kept at all."""
        if results.folder is not None and why not in self._told:
            print(f"moe_lab: results are not kept: {why}", file=sys.stderr)
        self._told.add(why)


def _odd_source() -> str:
    path = changed()
    return "" if path is None else f"{path} was changed after this program had begun"


def _gates(trace: Trace) -> str:
    """The digest of a trace's gate weights; empty without them."""
    return "" if trace.weights is None else digests([Stretch.of(trace.weights)])[0]


def _numbers(values: Any, n: int) -> bool:
    """Whether it is a list of ``n`` numbers, none of them NaN."""
    return (isinstance(values, list) and len(values) == n
            and all(type(one) in (int, float) and not math.isnan(one) for one in values))
