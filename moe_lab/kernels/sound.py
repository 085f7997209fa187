"""Whether the numbers that a router gives for a token can be ranked at all.

Knows NaN and infinities, and what to say of them. Knows no policy: what it refuses no policy gets to see.
"""

from __future__ import annotations

import numpy as np

from moe_lab.errors import PolicyError
from moe_lab.kernels.jit import jit


@jit(helper=True)
def sound(logits: np.ndarray) -> bool:
    """Whether none of ``logits`` (E,) is NaN or +inf; -inf masks an expert."""
    wrong = False
    for e in range(logits.size):        # no branch: fits vector units
        wrong |= not logits[e] < np.inf
    return not wrong


@jit(helper=True)
def finite(weights: np.ndarray) -> bool:
    """Whether every one of ``weights`` (E,) is a finite number."""
    wrong = False
    for e in range(weights.size):
        wrong |= weights[e] - weights[e] != 0
    return not wrong


def fault(logits: np.ndarray) -> str:
    """What a router gave that cannot be ranked, in words, by the ``logits`` (E,) of one token.

    >>> fault(np.array([0, np.nan])), fault(np.array([-np.inf, 1])), fault(np.array([-np.inf, -np.inf]))
    ('logits hold NaN', 'gate weights are not finite', 'logits mask every expert')
    """
    if np.isnan(logits).any():
        return "logits hold NaN"
    if np.isposinf(logits).any():
        return "logits hold infinity"
    return "gate weights are not finite" if (logits > -np.inf).any() else "logits mask every expert"


def unsound(logits: np.ndarray, at: str) -> PolicyError:
    """The error for one token's ``logits`` (E,) that cannot be ranked; ``at`` says which token."""
    return PolicyError(f"the router's own {fault(logits)} {at}: the model, not the policy, is broken. Nothing was "
                       "changed.")
