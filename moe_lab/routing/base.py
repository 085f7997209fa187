"""The contract of a routing policy, and the decorator that makes one from a function.

Knows what a routing policy is given and what it must answer. Refuses to know caches: it sees who is
resident, as a row of booleans, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, overload

from moe_lab.errors import PolicyError
from moe_lab.parameters import Declared
from moe_lab.policy import Policy, check_arguments, declared

RANK = ("logits", "weights", "K", "resident", "state", "params", "scores")
"""The arguments of ``rank``."""


class RoutingPolicy(Policy):
    """Ranks the experts of one layer for one token.

    A subclass gives ``rank(logits, weights, K, resident, state, params, scores)``, a plain function that numba
    compiles: from the router's ``logits`` (E,) float32, all experts' gate ``weights`` (E,) float32, ``resident``
    (E,) bool, its ``state`` (OWN + state_size,) float64 and ``params`` (P,) float64 it fills ``scores`` (E,)
    float32. The K best are used; ties go to the larger logit, then to the lower id. +inf means always, -inf
    never; a NaN, or no expert at all, is an error. Gate weights always come from the original logits.
    """

    kind = "routing"
    rank: ClassVar[Callable[..., None]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "rank"):
            raise PolicyError(f"routing policy {cls.name!r} needs a function rank({', '.join(RANK)})")
        check_arguments(cls.rank, RANK, cls.name)

    @property
    def lossy(self) -> bool:
        """Whether it can choose other experts than the model's router does."""
        return True


@overload
def policy(function: Callable[..., None], /) -> type[RoutingPolicy]: ...
@overload
def policy(*, state_size: int = 0, **parameters: Declared) -> Callable[[Callable[..., None]], type[RoutingPolicy]]: ...


def policy(function: Callable[..., None] | None = None, /, *, state_size: int = 0,
           **parameters: Declared) -> type[RoutingPolicy] | Callable[[Callable[..., None]], type[RoutingPolicy]]:
    """Make a routing policy class of a ``rank`` function, bare or with parameters.

    Args:
        state_size: floats of its own in ``state``, from ``OWN`` on.
        parameters: ``ml.Parameter`` or ``Table`` by name; ``params`` holds their numbers in this order, tables last.

    Example:
        >>> from moe_lab.policy import Parameter
        >>> @policy(bonus=Parameter(1, 0, 4, doc="added to the logits of resident experts"))
        ... def nudge(logits, weights, K, resident, state, params, scores):
        ...     for e in range(len(logits)):
        ...         scores[e] = logits[e] + params[0] * resident[e]
        >>> nudge(bonus=2)
        nudge(bonus=2)
    """
    def made(rank: Callable[..., None]) -> type[RoutingPolicy]:
        body = {"rank": staticmethod(rank), "state_size": state_size, **declared(parameters, rank.__name__),
                "__doc__": rank.__doc__, "__module__": rank.__module__ or "__main__", "__qualname__": rank.__qualname__}
        return type(rank.__name__, (RoutingPolicy,), body)

    return made if function is None else made(function)
