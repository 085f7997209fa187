"""A trace: which experts each token used in each layer, as recorded.

Knows ids, gate weights and what must hold of them; the files they come in stand in ``moe_lab.trace_files``. Knows no
policy and no model; replays stand in ``moe_lab.evaluation``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_lab.errors import TraceError
from moe_lab.spec import MOST_EXPERTS
from moe_lab.trace_files import READERS, WRITERS
from moe_lab.trace_files.arrays import real_numbers, whole_numbers, within
from moe_lab.trace_files.meta import plain
from moe_lab.trace_files.phases import DECODE, PREFILL
from moe_lab.trace_files.strange import door
from moe_lab.units import whole_number

_INT64 = -(2**63), 2**63 - 1
RUN = 8
"""Tokens in a row that are compared to find a stretch of one trace in another."""


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """The routes of T tokens through L layers, K experts each. Arrays are read-only.

    Raises:
        TraceError: shapes that do not fit; an id out of range, an expert twice in one place; anything that is no whole
            number where one is meant, or that the array it goes to cannot hold; NaN, infinities (but -inf for a
            masked logit) and negative weights; a meta that is not JSON. Nothing is cut off or wrapped round.

    Example:
        >>> trace = Trace(ids=np.array([[[0, 1]], [[2, 1]]]), experts=4)
        >>> trace
        Trace: 2 tokens (0 prefill, 2 decode), 1 layer x 4 experts, top-2, no weights
        >>> trace.digest()
        '9669f1ea1f85fba55126ea9965753bb0'
    """

    ids: np.ndarray
    """(T, L, K) int32, -1 where fewer than K experts were used."""
    weights: np.ndarray | None = None
    """(T, L, K) float32 gate weights, or None where none were recorded."""
    phase: np.ndarray = None  # type: ignore[assignment]
    """(T,) uint8: 0 prefill, 1 decode; None means all decode."""
    experts: int = None  # type: ignore[assignment]
    """Experts of a layer; None means the largest id + 1."""
    tokens: np.ndarray | None = None
    """(T,) int64 token ids, or None."""
    logits: np.ndarray | None = None
    """(T, L, E) float16 router logits, or None: enough to route again approximately, not exactly."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from, as a file would hold it: text, numbers, lists, dicts. ``experts`` says ``"guessed"`` where
    they were."""

    def __post_init__(self) -> None:
        meta, given = plain(self.meta), experts_of(self.experts)
        if given is None:
            meta["experts"] = "guessed"
        ids = _ids(self.ids, MOST_EXPERTS if given is None else given)
        T, experts = len(ids), int(ids.max(initial=-1)) + 1 if given is None else given
        phase = np.full(T, DECODE, np.uint8) if self.phase is None else _phase(self.phase, T)
        weights = None if self.weights is None else real_numbers(self.weights, "weights", ids.shape, np.float32, low=0)
        tokens = None if self.tokens is None else within(
            whole_numbers(self.tokens, "tokens", (T,)), *_INT64, np.int64, "tokens")
        logits = None if self.logits is None else real_numbers(
            self.logits, "logits", (*ids.shape[:2], experts), np.float16, low=-np.inf, masks=True)
        values = {"ids": ids, "weights": weights, "phase": phase, "experts": experts, "tokens": tokens,
                  "logits": logits, "meta": meta}
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
            object.__setattr__(self, name, value)

    @property
    def L(self) -> int:
        """MoE layers."""
        return int(self.ids.shape[1])

    @property
    def K(self) -> int:
        """Experts of a token in a layer, at most."""
        return int(self.ids.shape[2])

    @property
    def uses(self) -> int:
        """Expert uses: ids that are not -1."""
        return int(np.count_nonzero(self.ids >= 0))

    @property
    def prefill(self) -> Trace:
        """The tokens of the prompt."""
        return self[self.phase == PREFILL]

    @property
    def decode(self) -> Trace:
        """The tokens that were generated."""
        return self[self.phase == DECODE]

    def __getitem__(self, which: slice | np.ndarray) -> Trace:
        """Some of the tokens: ``trace[:100]``, or those that a mask (T,) bool names."""
        if not isinstance(which, (slice, np.ndarray)):
            raise TraceError(f"trace[{which!r}]: a trace is cut by a slice, trace[:100], or by a mask; one token is "
                             "trace[5:6]")
        try:
            ids = self.ids[which]
        except (IndexError, TypeError) as error:
            raise TraceError(f"trace[{which!r}] does not fit {len(self)} tokens: {error}") from None
        return replace(self, ids=ids, phase=self.phase[which],
                       weights=None if self.weights is None else self.weights[which],
                       tokens=None if self.tokens is None else self.tokens[which],
                       logits=None if self.logits is None else self.logits[which])

    def __len__(self) -> int:
        return len(self.ids)

    def digest(self) -> str:
        """32 hex digits that prove equal routes: a hash over the hashes of the layers' ids, token after token."""
        whole = hashlib.blake2b(digest_size=16)
        for layer in range(self.L):
            whole.update(hashlib.blake2b(self.ids[:, layer].astype("<i4").tobytes(), digest_size=16).digest())
        return whole.hexdigest()

    def marks(self) -> np.ndarray:
        """(T - RUN + 1,) uint64: a number for each run of RUN tokens, equal where their experts are; none if T < RUN.

        Places of the experts do not count. To see whether two traces share tokens; see also ``digest``.
        """
        place = (np.arange(self.L, dtype=np.uint64) << np.uint64(32))[:, None]
        token = _scattered(place + self.ids.astype(np.uint64)).sum(axis=(1, 2), dtype=np.uint64)
        runs = max(0, len(self) - RUN + 1)
        factors = _scattered(np.arange(RUN, dtype=np.uint64)) | np.uint64(1)
        return sum((token[i : i + runs] * factors[i] for i in range(RUN)), np.zeros(runs, np.uint64))

    def __repr__(self) -> str:
        guess = " (the largest id + 1)" if self.meta.get("experts") == "guessed" else ""
        return (f"Trace: {len(self):,} tokens ({int((self.phase == PREFILL).sum()):,} prefill, "
                f"{int((self.phase == DECODE).sum()):,} decode), {self.L} layer{'s' if self.L != 1 else ''} x "
                f"{self.experts} experts{guess}, top-{self.K}, {'with' if self.weights is not None else 'no'} weights"
                f"{', router logits in float16' if self.logits is not None else ''}")

    @classmethod
    def read(cls, path: str | Path, experts: int | None = None) -> Trace:
        """The trace in a file: ``.npz`` (ours), ``.jsonl`` (one JSON object a token), ``.csv`` (route_trace v1) or
        ``.parquet`` (with pyarrow: ``pip install 'moe-lab[parquet]'``).

        Args:
            experts: experts of a layer, where the file does not say; else the largest id + 1 over all layers.

        Raises:
            TraceError: no such file, or one that is malformed or truncated, in whatever way: the line and what was
                expected. Pickles are never read.
        """
        path, experts = Path(path), experts_of(experts)
        if path.suffix not in READERS:
            raise TraceError(f"{path}: a trace is {', '.join(READERS)}, not {path.suffix!r}")
        try:
            with door(str(path)):
                found = READERS[path.suffix](path, experts)
                found["experts"] = experts if experts is not None else found.get("experts")
                return cls(**found)
        except OSError as error:
            raise TraceError(f"{path} cannot be read: {error.strerror or error}") from error
        except TraceError as error:
            raise error if str(path) in str(error) else TraceError(f"{path}: {error}") from None

    def write(self, path: str | Path) -> None:
        """Write to ``path``, whole or not at all: ``.npz`` or ``.parquet`` (all of it), ``.jsonl`` or ``.csv`` (all but
        router logits; unused places come back behind the used ones).

        Raises:
            TraceError: another suffix, a folder that cannot be written to, no pyarrow for ``.parquet``, what a
                ``.jsonl`` or ``.csv`` has no line for, or a meta that is not JSON.
        """
        path = Path(path)
        if path.suffix not in WRITERS:
            raise TraceError(f"{path}: a trace is written as {', '.join(WRITERS)}, not {path.suffix!r}")
        try:
            WRITERS[path.suffix](self, path)
        except OSError as error:
            raise TraceError(f"{path} cannot be written: {error.strerror or error}") from error


def _scattered(numbers: np.ndarray) -> np.ndarray:
    """uint64 to uint64, neighbours far apart: the mixer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    z = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def experts_of(given: Any) -> int | None:
    """How many experts a layer has, as given; None where nobody said.

    Raises:
        TraceError: no whole number, or more than a layer can have.
    """
    number = whole_number(given)
    if given is not None and (number is None or not 0 <= number <= MOST_EXPERTS):
        raise TraceError(f"experts={given!r} must be a whole number up to {MOST_EXPERTS:,}: the experts of one layer")
    return number


def _ids(values: Any, experts: int) -> np.ndarray:
    """(T, L, K) int32, from -1 to ``experts`` - 1, distinct in a place."""
    ids = whole_numbers(values, "ids")
    if ids.ndim != 3:
        raise TraceError(f"ids must be (tokens, layers, K), not {ids.shape}")
    outside = (ids >= experts) | (ids < -1)
    if outside.any():
        t, l, k = (int(i[0]) for i in np.nonzero(outside))
        raise TraceError(f"token {t}, layer {l}: expert {ids[t, l, k]} is out of range, ids go from 0 to {experts - 1}")
    ids = np.array(ids, dtype=np.int32, order="C")
    row = np.sort(ids, axis=2)
    twice = (row[..., 1:] == row[..., :-1]) & (row[..., 1:] >= 0)
    if twice.any():
        t, l, k = (int(i[0]) for i in np.nonzero(twice))
        raise TraceError(f"token {t}, layer {l}: expert {row[t, l, k]} twice; one place has distinct experts")
    return ids


def _phase(values: Any, T: int) -> np.ndarray:
    """(T,) uint8."""
    phase = whole_numbers(values, "phase", (T,))
    wrong = (phase != PREFILL) & (phase != DECODE)
    if wrong.any():
        t = int(np.argmax(wrong))
        raise TraceError(f"token {t}: phase is 0 (prefill) or 1 (decode), not {phase[t]}")
    return np.array(phase, dtype=np.uint8)
