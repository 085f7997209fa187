"""The model's own choice."""

from __future__ import annotations

from moe_lab.kernels.jit import copied
from moe_lab.routing.base import RoutingPolicy


class Original(RoutingPolicy):
    """The K experts with the largest logits, whatever is resident: exact."""

    @property
    def lossy(self) -> bool:
        """Never."""
        return False

    @staticmethod
    def rank(logits, weights, K, resident, state, params, scores):  # type: ignore[no-untyped-def]
        """Score = logit."""
        copied(logits, scores)
