"""From the logits of one position to the next token, in the order transformers applies its rules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moe_lab.errors import NotFiniteError, SettingError
from moe_lab.units import real_number, whole_number

_STRONGEST = 1e9
"""Of a repetition penalty: what it makes of a logit is still a number in float32."""
_COLDEST = float(np.finfo(np.float32).tiny)
"""A temperature below is none: float32 does not hold it, and the likeliest token is all there is."""


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
        temperature, top_p, penalty = (real_number(x) for x in (self.temperature, self.top_p, self.repetition_penalty))
        top_k, seed = whole_number(self.top_k), whole_number(self.seed)
        if temperature is None or temperature < 0:
            raise SettingError(f"temperature={self.temperature!r} must be 0 (greedy) or more; type temperature=0.8")
        if self.top_k is not None and (top_k is None or top_k < 1):
            raise SettingError(f"top_k={self.top_k!r} must be 1 or more, or None for all tokens")
        if self.top_p is not None and (top_p is None or not 0 < top_p <= 1):
            raise SettingError(f"top_p={self.top_p!r} must lie above 0 and at most at 1, or be None")
        if penalty is None or not 1 / _STRONGEST <= penalty <= _STRONGEST:
            raise SettingError(f"repetition_penalty={self.repetition_penalty!r} must be above 0 (and from "
                               f"{1 / _STRONGEST:g} to {_STRONGEST:g}); 1 changes nothing")
        if seed is None or not -(2**63) <= seed < 2**64:
            raise SettingError(f"seed={self.seed!r} must be a whole number of 64 bits; type seed=0")


class Sampler:
    """Draws tokens for one run; the same seed draws the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = _random_numbers(sampling)

    def change(self, sampling: Sampling) -> None:
        """Draw by another rule from now on; only another seed starts the random numbers afresh."""
        if sampling.seed != self.sampling.seed:
            self._random = _random_numbers(sampling)
        self.sampling = sampling

    def __call__(self, logits: np.ndarray, seen: list[int]) -> int:
        """The next id for ``logits`` (V,) float32, after ``seen`` (prompt and text so far).

        Raises ``NotFiniteError`` where the largest of them is no number. -inf is a token that is ruled out.
        """
        rule = self.sampling
        likeliest = int(logits.argmax())            # of NaN, if there is one
        if not math.isfinite(logits[likeliest]):
            raise NotFiniteError(f"the model's logits hold {logits[likeliest]} at token {likeliest}, so none can be "
                                 "drawn: its weights are damaged, or were changed")
        with np.errstate(all="ignore"):             # what is too unlikely for float32 has the share 0
            if rule.repetition_penalty != 1:
                logits = _penalised(logits, seen, rule.repetition_penalty)
                likeliest = int(logits.argmax())
            if rule.temperature < _COLDEST:
                return likeliest
            return self._draw(np.exp((logits - logits[likeliest]) / np.float32(rule.temperature)))

    def _draw(self, shares: np.ndarray) -> int:
        """An id drawn by ``shares`` (V,) float32, the largest of which is 1."""
        rule = self.sampling
        if rule.top_k is not None and rule.top_k < shares.size:
            shares[shares < np.partition(shares, -rule.top_k)[-rule.top_k]] = 0
        if rule.top_p is not None and rule.top_p < 1:
            shares[_tail(shares, rule.top_p)] = 0
        sums = shares.cumsum(dtype=np.float64)
        drawn = int(sums.searchsorted(self._random.random() * sums[-1], side="right"))
        return drawn if drawn < shares.size else int(shares.argmax())       # the product may round up to the sum


def _random_numbers(sampling: Sampling) -> np.random.Generator:
    return np.random.default_rng(int(sampling.seed) % 2**64)


def _penalised(logits: np.ndarray, seen: list[int], penalty: float) -> np.ndarray:
    """A copy of ``logits`` in which the ids seen before are less likely: positive ones divided, negative multiplied."""
    logits, ids = logits.copy(), np.unique(seen)
    value = logits[ids]
    logits[ids] = np.where(value < 0, value * np.float32(penalty), value / np.float32(penalty))
    return logits


def _tail(shares: np.ndarray, top_p: float) -> np.ndarray:
    """Ids of the least likely tokens that together have at most 1 - ``top_p`` of the sum of ``shares`` (V,).

    Those with less than their even part of it belong to them without being sorted; in a large vocabulary these are
    nearly all.
    """
    allowed = (1 - top_p) * float(shares.sum(dtype=np.float64))
    small = shares <= allowed / shares.size
    rest = np.nonzero(~small)[0]
    rest = rest[shares[rest].argsort(kind="stable")]
    sums = shares[rest].cumsum(dtype=np.float64) + float(shares[small].sum(dtype=np.float64))
    over = max(0, min(int(sums.searchsorted(allowed, side="right")), rest.size - 1))    # the likeliest always stays
    return np.concatenate([np.nonzero(small)[0], rest[:over]])
