"""From the logits of one position to the next token, in the order transformers applies its rules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from moe_lab.errors import SettingError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. ``temperature`` 0 is greedy: the largest logit, ties to the lowest id."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise SettingError(f"temperature={self.temperature!r} must be 0 (greedy) or more; type temperature=0.8")
        if self.top_k is not None and self.top_k < 1:
            raise SettingError(f"top_k={self.top_k!r} must be 1 or more, or None for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SettingError(f"top_p={self.top_p!r} must lie above 0 and at most at 1, or be None")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise SettingError(f"repetition_penalty={self.repetition_penalty!r} must be above 0; 1 changes nothing")


class Sampler:
    """Draws tokens for one run; the same seed draws the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

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
