"""Whether the experts of a trace are the best of its recorded logits.

Knows how logits are rounded on their way into a trace. Knows no model: a router that ranks by something else (a
selection bias, groups of experts) shows in its routes.
"""

from __future__ import annotations

import numpy as np

from moe_lab.trace import Trace

_AT_ONCE = 2**20
"""Logits that are looked at at once: 4 MiB."""
_HALF, _BRAIN = 2.0**-10, 2.0**-7
"""What two neighbours in float16 and in bfloat16 differ by at most, as a share of themselves."""


def disagreeing(trace: Trace) -> float:
    """Share of the places (a token in a layer) that used an expert which is not among the K best of the logits.

    An expert may lie behind by what rounding can explain: of the logits to float16, and of the scores that a model
    ranks in its own precision, be they softmax or sigmoid. Places that used fewer than K experts may have left out any.

    Example:
        >>> trace = Trace(ids=[[[2, 1]], [[0, 2]]], logits=[[[0.1, 0.5, 1.0]], [[0.1, 0.5, 1.0]]])
        >>> disagreeing(trace)
        0.5
    """
    assert trace.logits is not None
    T, L, E = trace.logits.shape
    step, found = max(1, _AT_ONCE // max(1, L * E)), 0
    for at in range(0, T, step):
        found += _count(trace.ids[at : at + step], trace.logits[at : at + step].astype(np.float32))
    return found / max(1, T * L)


def _count(ids: np.ndarray, logits: np.ndarray) -> int:
    """Places of ``ids`` (n, L, K) at which K of ``logits`` (n, L, E) float32 lie above an expert that was used."""
    own = np.take_along_axis(logits, np.maximum(ids, 0), axis=2)
    least = np.where(ids >= 0, own, np.inf).min(axis=2, initial=np.inf)
    above = (logits > _reach(least, _BRAIN if _brain(logits) else _HALF)[..., None]).sum(axis=2)
    return int(np.count_nonzero(above >= ids.shape[2]))


def _reach(logits: np.ndarray, share: float) -> np.ndarray:
    """Up to where another logit may rank with each of ``logits``, if scores are rounded to ``share`` of themselves.

    A softmax so much larger has a logit that is larger by as much. A sigmoid so much larger has the logit
    ln(1 + share) - ln(e^-z - share), and there is none where that would be more than 1.
    """
    with np.errstate(all="ignore"):
        room = np.exp(-logits) - share
        sigmoid = np.where(room > 0, np.log1p(share) - np.log(room), np.inf)
    rounded = _HALF * np.minimum(np.abs(logits), 65504)
    return np.maximum(logits + _BRAIN, sigmoid) + rounded


def _brain(logits: np.ndarray) -> bool:
    """Whether they are bfloat16 numbers, so that the model computes its scores in that type, too."""
    bits = logits.view(np.uint32) & np.uint32(0xFFFF)
    return not ((bits != 0) & (np.abs(logits) < 65504)).any()
