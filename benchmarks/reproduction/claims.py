"""What a claim is, and how its verdict follows from figures.

Knows three words and how they are counted. The thresholds stand in the topics, each beside its claim.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

HOLDS, PART, NOT = "holds", "holds in part", "does not hold"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper beside what was found here."""

    source: str
    """Section of PAPER, the digest this project works from; or the paper's own section."""
    claim: str
    verdict: str
    test: str
    """By which threshold, in words."""
    found: str
    """The figures."""
    why: str

    def values(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def judged(source: str, claim: str, test: str, passed: Iterable[bool], found: str, whys: dict[str, str]) -> Claim:
    """A claim that holds where everything passed, in part where something did, and else does not.

    >>> judged("1", "it is fast", "10 tokens/s", [True, False], "12 and 8", {PART: "one is slow"}).verdict
    'holds in part'
    """
    verdict = verdict_of(passed)
    return Claim(source, claim, verdict, test, found, whys.get(verdict, ""))


def verdict_of(passed: Iterable[bool]) -> str:
    """All, some or none."""
    results = list(passed)
    return HOLDS if results and all(results) else PART if any(results) else NOT
