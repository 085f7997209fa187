"""Compiling once, after an installation, so that no first run has to: ``python -m moe_lab compile``.

Knows what first runs do: load a model in some weight format, write under the original routing or Cache-Prior, change
the size of the cache. The kernels stay on disk; another policy, or a family with other layers, compiles a little more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from moe_lab.engine.load import load
from moe_lab.kernels.crew import SMALL
from moe_lab.kernels.formats import FORMATS
from moe_lab.kernels.job import Job
from moe_lab.spec import WeightFormat

ROUTINGS = ("original", "cache-prior")


def everything(weights: Sequence[WeightFormat]) -> Iterator[Callable[[], None]]:
    """The steps of it, for those formats."""
    for name in weights:
        for routing in ROUTINGS:
            yield functools.partial(_write, name, routing)
        yield functools.partial(_large, name)


def _write(weights: WeightFormat, routing: str) -> None:
    """Two tokens of the pocket model, the first by transformers' modules and the second by kernels, and a resize."""
    engine = load("pocket", weights=weights, cache="50%", routing=routing)
    engine._ahead.join()
    engine.generate([0, 1], max_new_tokens=2, stop_at_end=False)
    engine.cache.resize("25%")
    engine.close()


def _large(weights: WeightFormat) -> None:
    """A token of experts so large that threads share them; there is none, only their size."""
    none, x = np.full(1, -1, np.int32), np.zeros((2, 32), np.float32)
    arena = np.zeros((1, SMALL), np.uint8)
    FORMATS[weights].token_again(Job(32, 32, 1, 0), x[0], arena, none, np.zeros(1, np.float32), x[1])()
