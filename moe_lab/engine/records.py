"""What a run reports: steps, replies, scores. Frozen records, no behaviour beyond ratios."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moe_lab.units import format_bytes

if TYPE_CHECKING:
    from moe_lab.trace import Trace


DISTINCT = 0.7
"""Share of distinct 4-grams under which a text is said to repeat itself."""


@dataclass(frozen=True)
class Times:
    """Where the seconds went: waiting for reads, routing, expert compute, the rest of the model."""

    read_s: float = 0.0
    route_s: float = 0.0
    experts_s: float = 0.0
    rest_s: float = 0.0

    @property
    def total_s(self) -> float:
        """The sum of the four."""
        return self.read_s + self.route_s + self.experts_s + self.rest_s

    def __add__(self, other: Times) -> Times:
        return Times(
            self.read_s + other.read_s, self.route_s + other.route_s,
            self.experts_s + other.experts_s, self.rest_s + other.rest_s,
        )


@dataclass(frozen=True)
class Phase:
    """Counts over the tokens of one phase (prefill or decode).

    ``misses`` count by the rule, expert by expert and token by token; ``read_bytes`` is what was read.
    In a pass of many tokens an expert is read once, so the two differ there.
    """

    tokens: int = 0
    hits: int = 0
    misses: int = 0
    swapped: int = 0
    mass: float = 0.0
    """Sum over tokens and layers of the gate mass kept (1 for original routing)."""
    routes: int = 0
    """Tokens x layers."""
    read_bytes: int = 0
    times: Times = field(default_factory=Times)

    @property
    def uses(self) -> int:
        """Expert uses: hits and misses."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """Share of the uses whose expert was resident."""
        return self.hits / self.uses if self.uses else 0.0

    @property
    def miss_rate(self) -> float:
        """Share of the uses whose expert was not resident."""
        return self.misses / self.uses if self.uses else 0.0

    @property
    def swapped_share(self) -> float:
        """Share of the uses that went to an expert outside the original top K."""
        return self.swapped / self.uses if self.uses else 0.0

    @property
    def mass_kept(self) -> float:
        """Mean gate mass of the chosen experts over that of the original top K."""
        return self.mass / self.routes if self.routes else 1.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second, all times included."""
        return self.tokens / self.times.total_s if self.times.total_s else 0.0

    @property
    def read_bytes_per_token(self) -> float:
        """Bytes read from disk for a token, on average."""
        return self.read_bytes / self.tokens if self.tokens else 0.0

    def __add__(self, other: Phase) -> Phase:
        return Phase(
            self.tokens + other.tokens, self.hits + other.hits, self.misses + other.misses,
            self.swapped + other.swapped, self.mass + other.mass, self.routes + other.routes,
            self.read_bytes + other.read_bytes, self.times + other.times,
        )


@dataclass(frozen=True)
class Stats:
    """Figures of a run. The rates at the top are those of ``decode``, or of ``prefill`` where nothing was decoded."""

    prefill: Phase
    decode: Phase
    exact: bool
    """Original routing in the checkpoint's precision, at every token of the run."""
    simulated: bool
    """Whether the disk was slowed down on purpose."""
    setting: str
    """Routing, eviction, slots and disk in words, as they were in the run; at its end, where they were changed."""
    digest: str
    """Hash of all routes: two runs with one digest routed alike."""
    distinct: float = math.nan
    """Share of the 4-grams of the last 200 generated tokens that are distinct, 0 to 1; NaN where nothing was
    generated. A text that repeats itself uses the same experts again and again: its hit rate and speed flatter."""

    @property
    def loops(self) -> bool:
        """Whether the text repeats itself so much that its figures are no measure."""
        return self.distinct < DISTINCT

    @property
    def main(self) -> Phase:
        """The phase that the rates speak of."""
        return self.decode if self.decode.tokens else self.prefill

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second."""
        return self.main.tokens_per_s

    @property
    def hit_rate(self) -> float:
        """Share of the uses whose expert was resident."""
        return self.main.hit_rate

    @property
    def miss_rate(self) -> float:
        """Share of the uses whose expert was not resident."""
        return self.main.miss_rate

    @property
    def swapped_share(self) -> float:
        """Share of the uses that went to an expert outside the original top K."""
        return self.main.swapped_share

    @property
    def mass_kept(self) -> float:
        """Mean gate mass kept, 1 for original routing."""
        return self.main.mass_kept

    @property
    def read_bytes_per_token(self) -> float:
        """Bytes read for a token."""
        return self.main.read_bytes_per_token

    def __repr__(self) -> str:
        def line(name: str, p: Phase) -> str:
            return (f"  {name:<8} {p.tokens:,} tokens, {p.tokens_per_s:,.1f} tokens/s, miss rate {p.miss_rate:.1%}, "
                    f"{format_bytes(p.read_bytes_per_token)} read per token, {p.swapped_share:.1%} of the uses swapped")

        lines = [f"{self.setting}: {'exact' if self.exact else 'lossy'}"]
        lines += [line(name, p) for name, p in (("prefill", self.prefill), ("decode", self.decode)) if p.tokens]
        if self.loops:
            lines.append(f"  loops    only {self.distinct:.0%} of the last 4-grams are distinct: a text that repeats "
                         "itself reuses its experts, so hit rate and speed flatter; sample: temperature=1.0")
        return "\n".join([*lines, f"  routes   {self.digest}"])


@dataclass(frozen=True)
class Step:
    """One generated token. The first step includes the prompt."""

    index: int
    """Place among the generated tokens, from 0."""
    position: int
    """Place among all tokens the engine has routed; what ``engine.explain`` looks up."""
    text: str
    """What this token adds to the text; may be empty inside a character or before a stop string."""
    ids: tuple[int, ...]
    hits: int
    misses: int
    swapped: int
    read_bytes: int
    touched_bytes: int
    """Weight bytes read from memory, dense and experts, without the KV cache."""
    times: Times
    finish: str = ""
    """Why this was the last step: ``end``, ``length``, ``stop`` or ``context``; empty before."""


@dataclass(frozen=True)
class Reply:
    """A finished generation."""

    text: str
    ids: tuple[int, ...]
    stats: Stats
    trace: Trace
    finish: str

    @property
    def distinct(self) -> float:
        """Share of the 4-grams of its last 200 tokens that are distinct, see ``Stats``."""
        return self.stats.distinct

    def __repr__(self) -> str:
        return f"{self.text}\n\n{self.stats!r}"


@dataclass(frozen=True)
class Score:
    """A teacher-forced evaluation of a text."""

    perplexity: float
    """exp of the mean loss a token."""
    bits_per_byte: float
    """Loss in bits over the bytes of the scored text; NaN without a tokenizer."""
    loss: float
    """Mean negative log-likelihood a token, in nats."""
    tokens: int
    window_losses: tuple[float, ...]
    """Mean loss of each window, for paired comparisons."""
    stats: Stats
    trace: Trace

    @property
    def miss_rate(self) -> float:
        """Misses over expert uses, all tokens."""
        return self.stats.miss_rate

    @property
    def swapped_share(self) -> float:
        """Share of the uses that went to an expert outside the original top K."""
        return self.stats.swapped_share

    def __repr__(self) -> str:
        bits = "" if math.isnan(self.bits_per_byte) else f" ({self.bits_per_byte:.3f} bits per byte)"
        return (f"perplexity {self.perplexity:.3f}{bits} over {self.tokens:,} tokens\n{self.stats!r}")
