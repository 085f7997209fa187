"""The numbers of a layer's policies that are in force, as kernels read them.

Knows parameters by layer and schedules over tokens: a walk is cut where a schedule takes another number, so that one
pass of many tokens does what the same tokens do one by one. Knows no residency.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator

import numpy as np

from moe_lab.parameters import Schedule
from moe_lab.policy import Policy


class Numbers:
    """Parameter vectors of some policies for one layer; the arrays stay, what stands in them follows the tokens.

    Raises ``PolicyError`` for a list by layer that has no number for this layer.

    >>> from moe_lab.routing import CachePrior
    >>> numbers = Numbers([CachePrior(penalty=Schedule({0: 0.1, 5: 0.5}))], layer=0)
    >>> [(first, end, float(numbers.vectors[0][0])) for first, end in numbers.stretches(token=3, tokens=9)]
    [(0, 2, 0.1), (2, 9, 0.5)]
    """

    def __init__(self, policies: list[Policy], layer: int) -> None:
        self.vectors: list[np.ndarray] = [policy.at(layer).vector() for policy in policies]
        """(P,) float64 of each policy."""
        self._policies, self._layer = policies, layer
        self._steps = sorted({token for policy in policies for value in policy.values().values()
                              if isinstance(value, Schedule) for token, _ in value.steps})
        self._step = bisect.bisect_right(self._steps, 0)

    @property
    def follow(self) -> bool:
        """Whether any number follows the tokens."""
        return bool(self._steps)

    def use(self, token: int) -> None:
        """Bring those into force that hold for a layer that has seen ``token`` tokens."""
        step = bisect.bisect_right(self._steps, token)
        if step != self._step:
            for vector, policy in zip(self.vectors, self._policies, strict=True):
                vector[:] = policy.at(self._layer, token).vector()
            self._step = step

    def stretches(self, token: int, tokens: int) -> Iterator[tuple[int, int]]:
        """(first, end) of the next ``tokens`` tokens, after ``token``, in which every number stays as it is; those of a
        stretch are in force while it is the present one."""
        cuts = [0, *(step - token for step in self._steps if token < step < token + tokens), tokens]
        for first, end in itertools.pairwise(cuts):
            self.use(token + first)
            yield first, end
