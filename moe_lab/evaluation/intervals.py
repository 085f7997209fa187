"""How sure a figure is: intervals over windows, differences paired.

Knows numbers only. Two settings scored on the same windows differ far less than windows differ among
themselves, so each window is compared with itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean and the ends of its interval; NaN ends where one window tells nothing of the spread."""

    mean: float
    low: float
    high: float


def paired(totals: Sequence[float], others: Sequence[float], tokens: Sequence[int], level: float = 0.95) -> Interval:
    """Mean difference a token of window sums ``totals`` - ``others``, windows of ``tokens`` tokens each.

    Student's t over the windows, weighted by their tokens (the ratio estimator of Cochran, Sampling Techniques,
    chapter 6).

    >>> [round(end, 3) for end in paired([11.0, 22.0, 30.0], [10.0, 20.0, 29.0], [10, 10, 10])]
    [0.133, -0.01, 0.277]
    """
    n = np.asarray(tokens, dtype=np.float64)
    difference = np.asarray(totals, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    mean = float(difference.sum() / n.sum())
    m = len(n)
    if m < 2:
        return Interval(mean, math.nan, math.nan)
    spread = math.sqrt(m / (m - 1) * float(((difference - mean * n) ** 2).sum())) / float(n.sum())
    reach = student((1 + level) / 2, m - 1) * spread
    return Interval(mean, mean - reach, mean + reach)


class Bootstrap:
    """Windows drawn anew with replacement: how far ratios of sums would have differed on another text.

    Everything is drawn from the same windows at a time, so the difference of two ratios is paired. The quantiles are
    moved outwards for few windows as Student's t is ("expanded percentile": Hesterberg, The American Statistician 69
    (2015), section 4; Efron, Annals of Statistics 7 (1979), for the bootstrap itself).

    Args:
        windows: how many there are.
        draws: texts drawn of them.

    Example:
        >>> strap = Bootstrap(3, seed=0)
        >>> ratios = strap.ratios(np.array([[3.0, 4.0, 5.0], [2.0, 3.0, 4.0]]), np.full((2, 3), 10.0))
        >>> low, high = strap.ends(ratios)
        >>> (low < [0.4, 0.3]).all(), (high > [0.4, 0.3]).all(), strap.ends(ratios[:, :1] - ratios[:, 1:])[0].round(9)
        (np.True_, np.True_, array([0.1]))
    """

    def __init__(self, windows: int, seed: int = 0, draws: int = 2000) -> None:
        self.windows = windows
        shares = np.full(windows, 1 / windows)
        self._counts = np.random.default_rng(seed).multinomial(windows, shares, size=draws).astype(np.float64)

    def ratios(self, parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
        """(draws, R) ratios of the sums of ``parts`` (R, W) over those of ``wholes`` (R, W) in each text drawn."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self._counts @ parts.T) / (self._counts @ wholes.T)

    def ends(self, values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends (R,) of the interval of ``values`` (draws, R); NaN where one window tells nothing."""
        W = self.windows
        if W < 2:
            nothing = np.full(values.shape[1], math.nan)
            return nothing, nothing
        reach = math.sqrt(W / (W - 1)) * student((1 + level) / 2, W - 1)
        tail = NormalDist().cdf(-reach)
        low, high = np.nanquantile(values, [tail, 1 - tail], axis=0)
        return low, high


def student(p: float, dof: int) -> float:
    """Quantile ``p`` of Student's t, to 0.5 %.

    Exact for one and two degrees of freedom, else Abramowitz and Stegun 26.7.5.

    >>> [round(student(0.975, dof), 2) for dof in (1, 2, 3, 10, 30)]
    [12.71, 4.3, 3.18, 2.23, 2.04]
    """
    if dof == 1:
        return math.tan(math.pi * (p - 0.5))
    if dof == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z = NormalDist().inv_cdf(p)
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
             (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160)
    return z + sum(term / dof ** (i + 1) for i, term in enumerate(terms))
