"""From the logits of one position to the next token, in the order transformers applies its rules."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import torch

from moe_lab.errors import SettingError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. ``temperature`` 0 is greedy: the largest logit, ties to the lowest id.

    ``top_k`` keeps the likeliest tokens, that many; ``top_p`` the likeliest that together have this share of the
    probability; None keeps all. ``repetition_penalty`` above 1 weakens tokens seen before. Raises ``SettingError``.

    >>> Sampling(temperature=0.8, top_p=0.9)
    Sampling(temperature=0.8, top_k=None, top_p=0.9, repetition_penalty=1.0, seed=0)
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (_finite(self.temperature) and self.temperature >= 0):
            raise SettingError(f"temperature={self.temperature!r} must be 0 (greedy) or more; type temperature=0.8")
        if self.top_k is not None and not (_whole(self.top_k) and self.top_k >= 1):
            raise SettingError(f"top_k={self.top_k!r} must be 1 or more, or None for all tokens")
        if self.top_p is not None and not (_finite(self.top_p) and 0 < self.top_p <= 1):
            raise SettingError(f"top_p={self.top_p!r} must lie above 0 and at most at 1, or be None")
        if not (_finite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise SettingError(f"repetition_penalty={self.repetition_penalty!r} must be above 0; 1 changes nothing")
        if not (_whole(self.seed) and -(2**63) <= self.seed < 2**64):
            raise SettingError(f"seed={self.seed!r} must be a whole number of 64 bits; type seed=0")


def _finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Integral)


class Sampler:
    """Draws tokens for one run; the same seed draws the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator().manual_seed(int(sampling.seed))

    def change(self, sampling: Sampling) -> None:
        """Draw by another rule from now on; only another seed starts the random numbers afresh."""
        if sampling.seed != self.sampling.seed:
            self._generator.manual_seed(int(sampling.seed))
        self.sampling = sampling

    def __call__(self, logits: torch.Tensor, seen: list[int]) -> int:
        """The next id for ``logits`` (V,), after ``seen`` (prompt and text so far)."""
        rule = self.sampling
        if rule.temperature == 0 and rule.repetition_penalty == 1:
            return int(logits.argmax())
        logits = logits.float()
        if rule.repetition_penalty != 1:
            ids = torch.tensor(sorted(set(seen)))
            value = logits[ids]
            logits[ids] = torch.where(value < 0, value * rule.repetition_penalty, value / rule.repetition_penalty)
        if rule.temperature == 0:
            return int(logits.argmax())
        logits = logits / rule.temperature
        if rule.top_k is not None and rule.top_k < logits.numel():
            logits[logits < logits.topk(rule.top_k).values[-1]] = -math.inf
        if rule.top_p is not None and rule.top_p < 1:
            value, order = logits.sort()
            drop = value.softmax(-1).cumsum(-1) <= 1 - rule.top_p
            drop[-1] = False
            logits[order[drop]] = -math.inf
        return int(torch.multinomial(logits.softmax(-1), 1, generator=self._generator))
